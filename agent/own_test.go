package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dma/forward"
	"dma/internal/passwd"
	"dma/localwriter"
	"dma/spooldir"
)

// home is the home of a user, and an agent that serves the user.
type home struct {
	t    *testing.T
	dir  string
	own  *Own
	user passwd.User
	n    int

	remote bool // what is to be done goes to another process
}

// everyWay runs a test with an agent that works by itself, and with one that
// has it done elsewhere.
func everyWay(t *testing.T, test func(t *testing.T, newHome func(*testing.T) *home)) {
	for _, remote := range []bool{false, true} {
		t.Run(map[bool]string{false: "own", true: "remote"}[remote], func(t *testing.T) {
			test(t, func(t *testing.T) *home {
				h := newHome(t)
				h.remote = remote
				return h
			})
		})
	}
}

// agent returns the agent, with the settings that h.own has now.
func (h *home) agent() Agent {
	if h.remote {
		return newRemote(h.t, h.own, h.user)
	}
	return h.own
}

func newHome(t *testing.T) *home {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	h := &home{t: t, dir: dir, user: passwd.User{Name: "alice", UID: 4711, Home: dir, Shell: "/bin/sh"}}
	h.own = &Own{
		UID: os.Geteuid(), Any: true, MinUID: 1000, Mailbox: "mbox:~/mbox", Forwards: "~/.forward", Limit: time.Minute,
		HostName: "host.test", Aliases: forward.NewAliasFile(filepath.Join(dir, "aliases")), AliasUser: "alice",
	}
	return h
}

func (h *home) write(file string, lines ...string) {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(h.dir, file), []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

func (h *home) read(file string) string {
	h.t.Helper()
	b, err := os.ReadFile(filepath.Join(h.dir, file))
	if err != nil && !os.IsNotExist(err) {
		h.t.Fatal(err)
	}
	return string(b)
}

// job makes a job with a message of its own.
func (h *home) job(kind spooldir.RecipientKind, target, source string) *Job {
	h.n++
	text := "Subject: test\n\nbody\n"
	return &Job{
		Kind: kind, Target: target, Source: source, Recipient: "alice@host.test", Original: "alice", Domain: "host.test",
		Message: localwriter.Message{
			ID: "20400101T000000-" + strings.Repeat("0", 15) + string(rune('a'+h.n)), Recipient: 1, Sender: "s@remote.test",
			Arrival: time.Unix(2208988800, 0), Header: []byte("Return-Path: <s@remote.test>\n"),
			Content: strings.NewReader(text), Size: int64(len(text)),
		},
	}
}

// deliver carries jobs out and checks that each was answered for, in order,
// and only when it was durable or had failed.
func (h *home) deliver(jobs ...*Job) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var done []*Job
	h.agent().Deliver(ctx, h.user, jobs, func(j *Job) { done = append(done, j) })
	if !slices.Equal(done, jobs) {
		h.t.Errorf("answered for %v, want %v", done, jobs)
	}
}

func TestServes(t *testing.T) {
	for _, test := range []struct {
		own  *Own
		uid  int
		want bool
	}{
		{&Own{UID: 1000}, 1000, true},
		{&Own{UID: 1000}, 1001, false},
		{&Own{UID: 1000}, 0, false},
		{&Own{UID: 0}, 1000, false},
		{&Own{UID: 1000, Any: true}, 1001, true},
	} {
		u := passwd.User{Name: "u", UID: test.uid}
		err := test.own.Serves(u)
		if (err == nil) != test.want {
			t.Errorf("uid %d by %d (any: %v): %v", test.uid, test.own.UID, test.own.Any, err)
		}
		if err != nil && strings.ContainsAny(err.Error(), "\n\r") {
			t.Errorf("%q is no line", err)
		}
	}

	// Nothing is touched for a user that is not served.
	h := newHome(t)
	h.own.Any, h.own.UID = false, h.user.UID+1
	h.write(".forward", "|cat > "+h.dir+"/ran", "x@remote.test")
	if _, err := h.own.Forward(t.Context(), h.user, ""); err == nil {
		t.Error("the .forward of a user that is not served was read")
	}
	jobs := []*Job{h.job(spooldir.Mailbox, "", ""), h.job(spooldir.Command, "cat > "+h.dir+"/ran", "forward")}
	h.deliver(jobs...)
	for _, j := range jobs {
		if j.Err == nil || errors.Is(j.Err, ErrUnlisted) {
			t.Errorf("%s: %v", j.Kind, j.Err)
		}
	}
	if h.read("mbox") != "" || h.read("ran") != "" {
		t.Error("something was written")
	}
}

func TestForward(t *testing.T) { everyWay(t, testForward) }

func testForward(t *testing.T, newHome func(*testing.T) *home) {
	h := newHome(t)
	if r, err := h.agent().Forward(t.Context(), h.user, "d"); err != nil || r.Forwards() {
		t.Errorf("without a .forward: %+v, %v", r, err)
	}
	h.write(".forward", "x@remote.test")
	h.write(".forward+d", "y@remote.test")
	for detail, want := range map[string]string{"": "x@remote.test", "d": "y@remote.test", "other": "x@remote.test"} {
		r, err := h.agent().Forward(t.Context(), h.user, detail)
		if err != nil || len(r.Targets) != 1 || r.Targets[0].Value != want {
			t.Errorf("+%s: %+v, %v", detail, r, err)
		}
	}
	if err := os.Chmod(filepath.Join(h.dir, ".forward"), 0o666); err != nil {
		t.Fatal(err)
	}
	if r, err := h.agent().Forward(t.Context(), h.user, ""); err == nil || r.Forwards() {
		t.Errorf("anybody may write to it: %+v, %v", r, err)
	}

	// An account of the system has a mailbox and nothing else.
	h.own.Any = false
	h.own.UID = 999
	system := h.user
	system.UID = 999
	if r, err := h.agent().Forward(t.Context(), system, ""); err != nil || r.Forwards() {
		t.Errorf("below MINUID: %+v, %v", r, err)
	}
	// Unless it is listed: then the file is read, and found to be anybody's.
	h.own.Listed = []string{"bob", "alice"}
	if r, err := h.agent().Forward(t.Context(), system, ""); err == nil || r.Forwards() {
		t.Errorf("below MINUID, and listed: %+v, %v", r, err)
	}
}

// TestListed: a file or a command is touched only if its owner lists it now,
// in the place that is said to list it.
// TestReadOnly: an agent that only reads delivers nothing, whatever it is asked for.
func TestReadOnly(t *testing.T) { everyWay(t, testReadOnly) }

func testReadOnly(t *testing.T, newHome func(*testing.T) *home) {
	h := newHome(t)
	h.own.ReadOnly = true
	h.write(".forward", "~/file, |touch ran")
	r, err := h.agent().Forward(t.Context(), h.user, "")
	if err != nil || len(r.Targets) != 2 {
		t.Fatalf("%+v, %v", r, err)
	}
	jobs := []*Job{h.job(spooldir.Mailbox, "", ""), h.job(spooldir.File, h.dir+"/file", "forward"), h.job(spooldir.Command, "touch ran", "forward")}
	h.deliver(jobs...)
	for _, j := range jobs {
		if j.Err == nil || !strings.Contains(j.Err.Error(), "delivers nothing") {
			t.Errorf("%s: %v", j.Kind, j.Err)
		}
	}
	if files, err := os.ReadDir(h.dir); err != nil || len(files) != 1 {
		t.Errorf("%v, %v", files, err)
	}
}

func TestListed(t *testing.T) { everyWay(t, testListed) }

func testListed(t *testing.T, newHome func(*testing.T) *home) {
	for _, test := range []struct {
		name    string
		forward []string
		plus    []string // .forward+d
		aliases []string
		kind    spooldir.RecipientKind
		target  string // %h is the home
		source  string
		detail  string
		user    string // ALIASUSER
		want    string // "ok", "unlisted" or "error"
	}{
		{name: "command", forward: []string{`"|cat > %h/out"`}, kind: spooldir.Command, target: "cat > %h/out", source: "forward", want: "ok"},
		{name: "another command", forward: []string{`"|cat > %h/other"`}, kind: spooldir.Command, target: "cat > %h/out", source: "forward", want: "unlisted"},
		{name: "no .forward", kind: spooldir.Command, target: "cat > %h/out", source: "forward", want: "unlisted"},
		{name: "file with the name of the command", forward: []string{"%h/out"}, kind: spooldir.Command, target: "%h/out", source: "forward", want: "unlisted"},
		{name: "file", forward: []string{"x@remote.test", "%h/out"}, kind: spooldir.File, target: "%h/out", source: "forward", want: "ok"},
		{name: "another file", forward: []string{"%h/out2"}, kind: spooldir.File, target: "%h/out", source: "forward", want: "unlisted"},
		{name: "Maildir, and a file is listed", forward: []string{"%h/out"}, kind: spooldir.File, target: "%h/out/", source: "forward", want: "unlisted"},
		{name: "file, and a Maildir is listed", forward: []string{"%h/out/"}, kind: spooldir.File, target: "%h/out", source: "forward", want: "unlisted"},
		{name: "Maildir", forward: []string{"%h/dir/"}, kind: spooldir.File, target: "%h/dir/", source: "forward", want: "ok"},
		{name: ".forward with a mistake", forward: []string{`"|never closed`}, kind: spooldir.File, target: "%h/out", source: "forward", want: "error"},
		{name: "listed for another detail", forward: []string{"%h/out"}, plus: []string{"x@remote.test"}, kind: spooldir.File, target: "%h/out", source: "forward", detail: "d", want: "unlisted"},
		{name: "listed for the detail", forward: []string{"x@remote.test"}, plus: []string{"%h/out"}, kind: spooldir.File, target: "%h/out", source: "forward", detail: "d", want: "ok"},
		{name: "listed by the aliases only", aliases: []string{"al: %h/out"}, kind: spooldir.File, target: "%h/out", source: "forward", want: "unlisted"},
		{name: "aliases", aliases: []string{"al: %h/out"}, kind: spooldir.File, target: "%h/out", source: "aliases", want: "ok"},
		{name: "alias command", aliases: []string{`al: "|cat > %h/out"`}, kind: spooldir.Command, target: "cat > %h/out", source: "aliases", want: "ok"},
		{name: "aliases of another user", aliases: []string{"al: %h/out"}, kind: spooldir.File, target: "%h/out", source: "aliases", user: "daemon", want: "unlisted"},
		{name: "listed by the .forward only", forward: []string{"%h/out"}, kind: spooldir.File, target: "%h/out", source: "aliases", want: "unlisted"},
		{name: "a source that is none", forward: []string{"%h/out"}, kind: spooldir.File, target: "%h/out", source: "me", want: "error"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHome(t)
			at := func(lines []string) []string {
				var out []string
				for _, l := range lines {
					out = append(out, strings.ReplaceAll(l, "%h", h.dir))
				}
				return out
			}
			if test.forward != nil {
				h.write(".forward", at(test.forward)...)
			}
			if test.plus != nil {
				h.write(".forward+d", at(test.plus)...)
			}
			if test.aliases != nil {
				h.write("aliases", at(test.aliases)...)
			}
			if test.user != "" {
				h.own.AliasUser = test.user
			}
			j := h.job(test.kind, strings.ReplaceAll(test.target, "%h", h.dir), test.source)
			j.Detail = test.detail
			h.deliver(j)
			got := "ok"
			if errors.Is(j.Err, ErrUnlisted) {
				got = "unlisted"
			} else if j.Err != nil {
				got = "error"
			}
			if got != test.want {
				t.Errorf("%s (%v), want %s", got, j.Err, test.want)
			}
			written := h.read("out") != ""
			if entries, _ := os.ReadDir(filepath.Join(h.dir, "dir", "new")); len(entries) > 0 {
				written = true
			}
			if written != (test.want == "ok") {
				t.Errorf("written: %v", written)
			}
		})
	}
}

// TestBatch: messages for one place share its session, others have their own;
// the order is kept, and what one cannot do, the next can.
func TestBatch(t *testing.T) { everyWay(t, testBatch) }

func testBatch(t *testing.T, newHome func(*testing.T) *home) {
	h := newHome(t)
	h.write(".forward", h.dir+"/box", `"|cat >> `+h.dir+`/out"`)
	jobs := []*Job{
		h.job(spooldir.Mailbox, "", ""), h.job(spooldir.Mailbox, "", ""),
		h.job(spooldir.File, h.dir+"/box", "forward"), h.job(spooldir.File, h.dir+"/other", "forward"),
		h.job(spooldir.Command, "cat >> "+h.dir+"/out", "forward"), h.job(spooldir.Command, "cat >> "+h.dir+"/out", "forward"),
		h.job(spooldir.Mailbox, "", ""),
	}
	broken := h.job(spooldir.Mailbox, "", "")
	broken.Message.Size++ // the content ends early
	jobs = append(jobs, broken, h.job(spooldir.Mailbox, "", ""))
	h.deliver(jobs...)
	for i, j := range jobs {
		switch {
		case i == 3 && !errors.Is(j.Err, ErrUnlisted), j == broken && j.Err == nil, i != 3 && j != broken && j.Err != nil:
			t.Errorf("job %d: %v", i, j.Err)
		}
	}
	mbox := h.read("mbox")
	last := -1
	for _, i := range []int{0, 1, 6, 8} {
		at := strings.Index(mbox, jobs[i].Message.ID)
		if at <= last {
			t.Errorf("message %d stands at %d, behind %d", i, at, last)
		}
		last = at
	}
	if got := strings.Count(mbox, "\nSubject: test\n"); got != 4 {
		t.Errorf("%d messages in the mailbox, want 4:\n%s", got, mbox)
	}
	if got := strings.Count(h.read("out"), "From s@remote.test "); got != 2 {
		t.Errorf("the command got %d messages", got)
	}
	if !strings.Contains(h.read("box"), jobs[2].Message.ID) || h.read("other") != "" {
		t.Error("the files hold something else")
	}
	if jobs[0].Place != h.dir+"/mbox" || jobs[4].Place != "|cat >> "+h.dir+"/out" {
		t.Errorf("places %q and %q", jobs[0].Place, jobs[4].Place)
	}

	// A second delivery of the first one, whose outcome was not recorded.
	again := h.job(spooldir.Mailbox, "", "")
	again.Message.ID, again.Message.Suspect = jobs[0].Message.ID, true
	h.deliver(again)
	if again.Err != nil || !again.Already || h.read("mbox") != mbox {
		t.Errorf("already there: %v, %v", again.Already, again.Err)
	}
}

// TestSamePlace: only what surely goes into one file shares a session.
func TestSamePlace(t *testing.T) {
	mbox, maildir := &Own{Mailbox: "mbox:/var/mail/%u"}, &Own{Mailbox: "maildir:~/Maildir"}
	base := Job{Kind: spooldir.File, Target: "/a", Source: "forward"}
	for _, test := range []struct {
		change func(*Job)
		want   bool
	}{
		{func(*Job) {}, true},
		{func(j *Job) { j.Target = "/b" }, false},
		{func(j *Job) { j.Source = "aliases" }, false},
		{func(j *Job) { j.Detail = "d" }, false},
		{func(j *Job) { j.Kind = spooldir.Mailbox }, false},
		{func(j *Job) { j.Recipient, j.Message.ID = "other", "other" }, true},
	} {
		other := base
		test.change(&other)
		if got := mbox.samePlace(&base, &other); got != test.want {
			t.Errorf("%+v: %v", other, got)
		}
	}
	command := Job{Kind: spooldir.Command, Target: "c", Source: "forward"}
	if mbox.samePlace(&command, &command) {
		t.Error("two commands share a session")
	}
	plain, detailed := Job{Kind: spooldir.Mailbox}, Job{Kind: spooldir.Mailbox, Detail: "d"}
	if !mbox.samePlace(&plain, &detailed) || maildir.samePlace(&plain, &detailed) {
		t.Error("a detail is a folder of a Maildir, and nothing to an mbox")
	}
}

func TestMailboxes(t *testing.T) { everyWay(t, testMailboxes) }

func testMailboxes(t *testing.T, newHome func(*testing.T) *home) {
	for _, test := range []struct {
		mailbox string
		detail  string
		home    string // "-": none
		file    string // that holds the message then; a Maildir ends with a slash
	}{
		{mailbox: "mbox:~/inbox", file: "inbox"},
		{mailbox: "mbox:~/inbox", detail: "d", file: "inbox"},
		{mailbox: "maildir:~/Maildir", file: "Maildir/new/"},
		{mailbox: "pipe:cat > ~/piped", file: "piped"},
		{mailbox: "mbox:~/inbox", home: "-"},
		{mailbox: "lmtp:/socket"},
	} {
		h := newHome(t)
		h.own.Mailbox = test.mailbox
		if test.home == "-" {
			h.user.Home = ""
		}
		j := h.job(spooldir.Mailbox, "", "")
		j.Detail = test.detail
		h.deliver(j)
		if (j.Err == nil) != (test.file != "") {
			t.Errorf("%s: %v", test.mailbox, j.Err)
		}
		var trouble *localwriter.Error
		if errors.As(j.Err, &trouble) && trouble.Permanent {
			t.Errorf("%s: %v is final", test.mailbox, j.Err)
		}
		if test.file == "" {
			continue
		}
		file := test.file
		if strings.HasSuffix(file, "/") {
			entries, err := os.ReadDir(filepath.Join(h.dir, file))
			if err != nil || len(entries) != 1 {
				t.Errorf("%s: %v, %v", test.mailbox, entries, err)
				continue
			}
			file += entries[0].Name()
		}
		if got := h.read(file); !strings.Contains(got, "Return-Path: <s@remote.test>\nSubject: test\n\nbody\n") {
			t.Errorf("%s: %q", test.mailbox, got)
		}
	}
}

// TestCommand: what a command is told, and what its end means.
func TestCommand(t *testing.T) { everyWay(t, testCommand) }

func testCommand(t *testing.T, newHome func(*testing.T) *home) {
	h := newHome(t)
	line := `printf '%s\n' "$USER" "$SENDER" "$RECIPIENT" "$ORIGINAL_RECIPIENT" "$LOCAL" "$EXTENSION" "$DOMAIN" "$(pwd -P)" > env; cat > out`
	h.write(".forward", forward.Target{Kind: forward.Command, Value: line}.String(), `"|exit 75"`, `"|exit 67"`)
	h.write(".forward+d", forward.Target{Kind: forward.Command, Value: line}.String())
	j := h.job(spooldir.Command, line, "forward")
	j.Recipient, j.Original, j.Detail = "alice+d@host.test", "al@host.test", "d"
	h.deliver(j)
	if j.Err != nil {
		t.Fatal(j.Err)
	}
	real, err := filepath.EvalSymlinks(h.dir)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := h.read("env"), "alice\ns@remote.test\nalice+d@host.test\nal@host.test\nalice+d\nd\nhost.test\n"+real+"\n"; got != want {
		t.Errorf("environment %q, want %q", got, want)
	}
	if got := h.read("out"); !strings.HasPrefix(got, "From s@remote.test ") || !strings.HasSuffix(got, "\n\nbody\n") {
		t.Errorf("input %q", got)
	}
	for line, permanent := range map[string]bool{"exit 75": false, "exit 67": true} {
		j := h.job(spooldir.Command, line, "forward")
		h.deliver(j)
		var trouble *localwriter.Error
		if !errors.As(j.Err, &trouble) || trouble.Permanent != permanent {
			t.Errorf("%s: %v", line, j.Err)
		}
	}
}

// TestStopped: jobs that the end of the process has cut off say so.
func TestStopped(t *testing.T) { everyWay(t, testStopped) }

func testStopped(t *testing.T, newHome func(*testing.T) *home) {
	h := newHome(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	jobs := []*Job{h.job(spooldir.Mailbox, "", ""), h.job(spooldir.Mailbox, "", "")}
	answered := 0
	h.agent().Deliver(ctx, h.user, jobs, func(j *Job) {
		answered++
		if !errors.Is(j.Err, context.Canceled) {
			t.Errorf("%v", j.Err)
		}
	})
	if answered != 2 || h.read("mbox") != "" {
		t.Errorf("answered for %d, mailbox %q", answered, h.read("mbox"))
	}
}
