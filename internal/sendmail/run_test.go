package sendmail

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"dma/internal/config"
	"dma/spooldir"
)

const someMail = "To: x@y.example\nSubject: s\n\nbody\n"

func TestSubmit(t *testing.T) {
	r := start("Subject: hi\nBcc: secret\n\nbody\n", "-v", "bob", "Carl <carl@x.example>, bob@MAIL.example").run()
	d := r.committed(t)
	equalList(t, "recipients", d.recipients(), []string{"bob", "carl@x.example"})
	equal(t, "sender", d.env.Sender, "alice@mail.example")
	equal(t, "uid", d.env.UID, 1001)
	equal(t, "EightBit", d.env.EightBit, false)
	equal(t, "UTF8", d.env.UTF8, false)
	equal(t, "stderr", r.stderr, "dma: queued as "+testID+"\n")
	equal(t, "stdout", r.stdout, "")
	date := testTime.Local().Format("Mon, 2 Jan 2006 15:04:05 -0700")
	equal(t, "content", d.content.String(),
		"Received: by mail.example (dma, from userid 1001)\n\tid "+testID+"; "+date+"\n"+
			"Subject: hi\n"+
			"From: Alice Example <alice@mail.example>\n"+
			"To: undisclosed-recipients:;\n"+
			"Date: "+date+"\n"+
			"Message-ID: <"+testID+"@mail.example>\n"+
			"\nbody\n")
	equal(t, "configuration", r.system.loaded, "/etc/dma/dma.conf")
	equal(t, "group given up", r.system.dropped, false)
}

// TestContent: what stands in the queue after the header.
func TestContent(t *testing.T) {
	for in, want := range map[string]string{
		"":                           "",
		"just text":                  "just text",
		"To: a@b\n\n\x00\xff\r\n.\n": "\x00\xff\r\n",
		"To: a@b\r\n\r\nx\r\ny\r\n":  "x\ny\n",
		"To: a@b\n\nTo: c@d\n":       "To: c@d\n",
	} {
		d := start(in, "bob").run().committed(t)
		equal(t, fmt.Sprintf("body of %q", in), d.body(t), want)
	}
	long := strings.Repeat("text\n", 1<<20)
	r := start("To: a@b\n\n"+long, "bob").run()
	if r.committed(t).body(t) != long {
		t.Error("a long body is not what went in")
	}
	equal(t, "scratch files", r.system.scratches, 1)
}

func TestSender(t *testing.T) {
	for _, tt := range []struct {
		args         string // separated by |
		email        string
		sender, from string // from is the added field's body
	}{
		{"", "", "alice@mail.example", "Alice Example <alice@mail.example>"},
		{"", "joe@x.example", "joe@x.example", "Alice Example <joe@x.example>"},
		{"", "Joe <joe@x.example>", "joe@x.example", "Alice Example <joe@x.example>"},
		{"", "joe", "joe@mail.example", "Alice Example <joe@mail.example>"},
		{"", "no address", "alice@mail.example", "Alice Example <alice@mail.example>"},
		{"", "a@b, c@d", "alice@mail.example", "Alice Example <alice@mail.example>"},
		{"", "a@b\nBcc: c", "alice@mail.example", "Alice Example <alice@mail.example>"},
		{"", "<>", "alice@mail.example", "Alice Example <alice@mail.example>"},
		{"-fbob@x.example", "joe@x.example", "bob@x.example", "bob@x.example"},
		{"-r|bob", "", "bob@mail.example", "bob@mail.example"},
		{"-f|alice", "", "alice@mail.example", "Alice Example <alice@mail.example>"},
		{"-f|Bob <bob@x.example>", "", "bob@x.example", "bob@x.example"},
		{"-f|<bob@x.example>|-F|Bob B.", "", "bob@x.example", `"Bob B." <bob@x.example>`},
		{"-f|<>", "joe@x.example", "", "Alice Example <alice@mail.example>"},
		{"-f|", "", "", "Alice Example <alice@mail.example>"},
		{"-F|", "", "alice@mail.example", "alice@mail.example"},
		{"-f|\"a b\"@x.example", "", `"a b"@x.example`, `"a b"@x.example`},
	} {
		args := []string{"bob"}
		if tt.args != "" {
			args = append(strings.Split(tt.args, "|"), args...)
		}
		r := start("To: a@b\n\n", args...)
		r.env = map[string]string{"EMAIL": tt.email}
		d := r.run().committed(t)
		what := fmt.Sprintf("%q, EMAIL=%q", tt.args, tt.email)
		equal(t, what, d.env.Sender, tt.sender)
		_, from, _ := strings.Cut(d.header(t), "From: ")
		from, _, _ = strings.Cut(from, "\n")
		equal(t, what, from, tt.from)
	}
	r := start("\n", "bob")
	r.env = map[string]string{"NAME": "A. Nother"}
	if h := r.run().committed(t).header(t); !strings.Contains(h, "From: \"A. Nother\" <alice@mail.example>\n") {
		t.Errorf("NAME: %q", h)
	}
}

func TestReadRecipients(t *testing.T) {
	for _, tt := range []struct {
		in   string
		args string
		want string
	}{
		{"To: a@b, c (x)\nCc: D <d@e>,\n f\nBcc: g, a@b\n\nTo: h\n", "", "a@b c d@e f g"},
		{"To: a@b\n\n", "x a@b", "x a@b"},
		{"Subject: s\nTo: a@b", "", "a@b"},
		{"To: a@b\r\nSubject: s\r\n\r\nCc: c@d\r\n", "", "a@b"},
		{"To: a@b\nResent-To: c@d\nResent-Bcc: e\nCc: f\n\n", "", "c@d e"},
		{"To: a@b\nResent-From: c@d\n\n", "x", "x"},
		{"To: undisclosed-recipients:;\nBcc: a\n\n", "", "a"},
		{"to: friends: a, b;\n\n", "", "a b"},
	} {
		args := append([]string{"-t"}, strings.Fields(tt.args)...)
		d := start(tt.in, args...).run().committed(t)
		equal(t, tt.in, strings.Join(d.recipients(), " "), tt.want)
	}
}

func TestEnvelope(t *testing.T) {
	d := start(someMail, "-N", "delay,success", "-R", "full", "-V", "a=b", "bob", "carl").run().committed(t)
	equal(t, "ret", d.env.Return, "FULL")
	equal(t, "envid", d.env.EnvelopeID, "a+3Db")
	for _, r := range d.env.Recipients {
		equal(t, "notify", r.Notify, "SUCCESS,DELAY")
	}
	for _, tt := range []struct {
		in        string
		args      string
		eight, u8 bool
	}{
		{"To: a@b\n\nx\xff\n", "bob", true, false},
		{"To: a@b\nSubject: \xc3\xa4\n\nx\n", "bob", true, true},
		{"To: a@b\nSubject: \xe4\n\nx\n", "bob", true, false},
		{"To: a@b\n\nx\n", "b\xc3\xb6b", false, true},
		{"To: a@b\n\nx\n", "-f b\xc3\xb6b bob", true, true}, // it stands in From
		{"To: a@b\nBcc: \xe4\n\nx\n", "bob", false, false},
	} {
		d := start(tt.in, strings.Fields(tt.args)...).run().committed(t)
		equal(t, fmt.Sprintf("EightBit, UTF8 of %q %q", tt.in, tt.args), [2]bool{d.env.EightBit, d.env.UTF8}, [2]bool{tt.eight, tt.u8})
	}
}

// TestRefused has everything that is refused, each with exit status and
// message. Nothing of it is queued.
func TestRefused(t *testing.T) {
	many := strings.Repeat("a@b,", 6000)
	var distinct strings.Builder
	for i := range maxRecipients + 1 {
		fmt.Fprintf(&distinct, "u%d,", i)
	}
	half := distinct.String()[:distinct.Len()/2]
	half = half[:strings.LastIndexByte(half, ',')]
	rest := distinct.String()[len(half)+1:]
	denied := errors.New("permission denied")
	for _, tt := range []struct {
		name   string
		in     string
		args   []string
		change func(*fakeSystem)
		status int
		stderr string
	}{
		{"no recipient", someMail, nil, nil, 64, "no recipients; name them as arguments, or give -t to take them from the message"},
		{"empty recipient", someMail, []string{"", " "}, nil, 64, "no recipients: the arguments are empty"},
		{"unknown option", someMail, []string{"-Z", "bob"}, nil, 64, `unknown option "-Z"; known are -ABCDEFGIJLNORSUVXbcdefhimnopqrstvx, see dma --help`},
		{"newline in a recipient", someMail, []string{"bob\nRCPT TO:<eve>"}, nil, 65, `recipient "bob\nRCPT TO:<eve>": it has a control character`},
		{"folded recipient", someMail, []string{"bob,\n eve"}, nil, 65, `recipient "bob,\n eve": it has a control character`},
		{"CR in a recipient", someMail, []string{"bob\r"}, nil, 65, `recipient "bob\r": it has a control character`},
		{"NUL in a recipient", someMail, []string{"bob\x00"}, nil, 65, `recipient "bob\x00": it has a control character`},
		{"escape in a recipient", someMail, []string{"\x1b[2Jbob"}, nil, 65, `recipient "\x1b[2Jbob": it has a control character`},
		{"words as a recipient", someMail, []string{"bob smith"}, nil, 65, `recipient: address "bobsmith": words without an address in <>; addresses are separated by commas`},
		{"broken recipient", someMail, []string{"bob@"}, nil, 65, ""},
		{"newline in the sender", someMail, []string{"-f", "a@b\nX: y", "bob"}, nil, 65, `sender "a@b\nX: y": it has a control character`},
		{"broken sender", someMail, []string{"-f", "<a@b", "bob"}, nil, 65, `sender "<a@b": address "<a@b": the closing > is missing`},
		{"two senders", someMail, []string{"-f", "a@b, c@d", "bob"}, nil, 65, ""},
		{"newline in the full name", someMail, []string{"-F", "a\nBcc: c", "bob"}, nil, 65, `-F "a\nBcc: c": a full name has at most 256 octets and no control characters`},
		{"long full name", someMail, []string{"-F", strings.Repeat("n", 257), "bob"}, nil, 65, `-F "` + strings.Repeat("n", 120) + `"...: a full name has at most 256 octets and no control characters`},

		{"-t without recipients", "Subject: s\n\nTo: bob\n", []string{"-t"}, nil, 66, "-t: no recipients: the message names none in To, Cc or Bcc"},
		{"-t, empty input", "", []string{"-t"}, nil, 66, "-t: no recipients: the message names none in To, Cc or Bcc"},
		{"-t, sent again to nobody", "To: bob\nResent-From: x\n\n", []string{"-t"}, nil, 66, "-t: no recipients: the message names none in To, Cc or Bcc"},
		{"-t, broken address", "tO: bob,\n <eve\n\n", []string{"-t"}, nil, 65, `-t: the tO field: address "eve": the closing > is missing`},
		{"-t, NUL", "Cc: b\x00b\n\n", []string{"-t"}, nil, 65, `-t: the Cc field: address "b?b": a control character is not allowed`},
		{"-t, too many of one", "To: " + many + many + "\n\n", []string{"-t"}, nil, 65, "-t: the To field: address list: more than 10000 addresses"},
		{"-t, too many of several", "To: " + many + "\nCc: " + many + "\n\n", []string{"-t"}, nil, 65, "12000 recipients: a message can have 10000; send it in parts"},
		{"too many", someMail, []string{half, rest}, nil, 65, "10001 recipients: a message can have 10000; send it in parts"},
		{"too many with -t", "To: " + rest + "\n\n", []string{"-t", half}, nil, 65, "10001 recipients: a message can have 10000; send it in parts"},
		{"long header", "X: " + strings.Repeat("x", maxHeader) + "\n\n", []string{"bob"}, nil, 65, "the header is longer than 16 MiB"},
		{"many fields", strings.Repeat("X:\n", maxFields+1) + "\n", []string{"bob"}, nil, 65, "the header has more than 100000 fields"},

		{"named configuration", someMail, []string{"-C", "/no", "bob"}, func(s *fakeSystem) { s.loadErr = errors.New("/no: no such file") }, 78, "-C: /no: no such file"},
		{"configuration", someMail, []string{"bob"}, func(s *fakeSystem) { s.loadErr = errors.New("/etc/dma/dma.conf: denied") }, 75, "configuration: /etc/dma/dma.conf: denied"},
		{"no door", someMail, []string{"bob"}, func(s *fakeSystem) { s.openErr = denied }, 75, "permission denied"},
		{"no space before", someMail, []string{"bob"}, func(s *fakeSystem) { s.freeErr = errors.New("the disk is full") }, 75, "no mail is taken now: the disk is full"},
		{"no scratch", "\n" + strings.Repeat("x\n", 1<<20), []string{"bob"}, func(s *fakeSystem) { s.scratchErr = denied }, 75, "keeping a long message: permission denied"},
		{"no file", someMail, []string{"bob"}, func(s *fakeSystem) { s.createErr = denied }, 75, "nothing was queued: permission denied"},
		{"no space", someMail, []string{"bob"}, func(s *fakeSystem) { s.writeErr = syscall.ENOSPC }, 75, "nothing was queued: no space left on device"},
		{"file size limit", someMail, []string{"bob"}, func(s *fakeSystem) { s.writeErr = syscall.EFBIG }, 75, "nothing was queued: file too large"},
		{"no commit", someMail, []string{"bob"}, func(s *fakeSystem) { s.commitErr = syscall.EIO }, 75, "nothing was queued: input/output error"},
	} {
		r := start(tt.in, tt.args...)
		r.system.drain = true
		if tt.change != nil {
			tt.change(&r.system)
		}
		r.run()
		equal(t, tt.name+": status", r.status, tt.status)
		if tt.stderr != "" {
			equal(t, tt.name+": stderr", r.stderr, "dma: "+tt.stderr+"\n")
		}
		if n := strings.Count(r.stderr, "\n"); n != 1 {
			t.Errorf("%s: %d lines: %q", tt.name, n, r.stderr)
		}
		equal(t, tt.name+": stdout", r.stdout, "")
		for _, d := range r.system.drafts {
			if d.committed || !d.aborted && r.system.commitErr == nil {
				t.Errorf("%s: committed %v, aborted %v", tt.name, d.committed, d.aborted)
			}
		}
		if r.system.started != nil {
			t.Errorf("%s: a drain was started", tt.name)
		}
	}
	// Ten thousand are not too many, and repetitions do not count.
	d := start("To: "+many+"\nCc: a@b\n\n", "-t", half, rest[:strings.LastIndexByte(rest[:len(rest)-1], ',')]).run()
	if d.status != 65 { // a@b is one more than ten thousand
		t.Errorf("status %d", d.status)
	}
	d = start(someMail, half, rest[:strings.LastIndexByte(rest[:len(rest)-1], ',')]+","+half).run()
	equal(t, "recipients", len(d.committed(t).recipients()), maxRecipients)
}

// TestControlCharacters puts every octet below the blank into everything that
// the command line can say about addresses.
func TestControlCharacters(t *testing.T) {
	for c := range 256 {
		if c >= ' ' && c != 0x7f {
			continue
		}
		bad := "a" + string(rune(c)) + "b"
		for _, args := range [][]string{{bad}, {bad + "@x"}, {"x@" + bad}, {`"` + bad + `"`}, {"(" + bad + ") x"}, {"-f", bad, "x"}, {"-f", "x@" + bad, "x"}, {"-F", bad, "x"}} {
			r := start(someMail, args...).run()
			if r.status != 65 || len(r.system.drafts) != 0 || strings.Count(r.stderr, "\n") != 1 {
				t.Errorf("%q: status %d: %q", args, r.status, r.stderr)
			}
		}
	}
}

func TestWarnings(t *testing.T) {
	r := start(someMail, "bob")
	r.system.problems = []config.Problem{{File: "/etc/dma/dma.conf", Line: 3, Text: "FOO: unknown key"}}
	r.system.config.MailName = "/no/such/file"
	d := r.run().committed(t)
	lines := strings.SplitAfter(r.stderr, "\n")
	if len(lines) != 3 || lines[0] != "dma: warning: /etc/dma/dma.conf:3: FOO: unknown key\n" || !strings.HasPrefix(lines[1], "dma: warning: MAILNAME: ") {
		t.Errorf("stderr %q", r.stderr)
	}
	if want := "alice@" + strings.ToLower(config.SystemName()); d.env.Sender != want {
		t.Errorf("sender %s, want %s", d.env.Sender, want)
	}
}

// TestGroup: whoever names a configuration file does not keep the group, and
// dma-runner never gets it.
func TestGroup(t *testing.T) {
	for _, tt := range []struct {
		args string
		uid  int
		want bool
	}{
		{"bob", 1001, false},
		{"-C /x bob", 1001, true},
		{"-C /x bob", 0, false},
		{"bob", 0, false},
		{"-q", 1001, true},
		{"-bp", 0, true},
	} {
		r := start(someMail, strings.Fields(tt.args)...)
		r.uid = tt.uid
		r.run()
		equal(t, tt.args, r.system.dropped, tt.want)
	}
}

func TestHandOver(t *testing.T) {
	for line, want := range map[string]string{
		"mailq":                        "mailq",
		"/usr/bin/mailq --json":        "mailq --json",
		"sendmail -bp":                 "mailq",
		"sendmail -q":                  "flush",
		"sendmail -q15m":               "flush",
		"sendmail -qRx -C /a/b.conf":   "-C /a/b.conf flush",
		"sendmail -C x.conf -bp":       "-C " + abs(t, "x.conf") + " mailq",
		"newaliases":                   "aliases",
		"sendmail -bi":                 "aliases",
		"dma -bs -C /a/b.conf":         "-C /a/b.conf smtp",
		"sendmail -bv root bob@x":      "verify root bob@x",
		"sendmail -bv -- -x bob":       "verify -- -x bob",
		"sendmail -bv -C /a/b.conf -v": "",
	} {
		words := strings.Fields(line)
		r := start("")
		r.args = words
		r.run()
		equal(t, line, strings.Join(r.system.executed, " "), want)
		if want != "" && (r.status != 0 || r.system.opened || !r.system.dropped) {
			t.Errorf("%s: status %d, %q", line, r.status, r.stderr)
		}
	}
	r := start("", "-q")
	r.system.execErr = errors.New("/usr/sbin/dma-runner: no such file or directory")
	r.run()
	equal(t, "status", r.status, 75)
	equal(t, "stderr", r.stderr, "dma: /usr/sbin/dma-runner: no such file or directory\n")
}

func TestHelp(t *testing.T) {
	r := start("", "--help").run()
	if r.status != 0 || !strings.HasPrefix(r.stdout, "usage: dma ") || r.stderr != "" {
		t.Errorf("status %d, %q, %q", r.status, r.stdout, r.stderr)
	}
	r = start("")
	r.args = nil
	equal(t, "no name: status", r.run().status, 64)
}

func TestDrain(t *testing.T) {
	for _, tt := range []struct {
		args  string
		drain bool // the caller may
		defr  bool // DEFER
		want  string
		wait  bool
	}{
		{"bob", true, false, "drain", false},
		{"bob", false, false, "", false},
		{"bob", true, true, "", false},
		{"-odb bob", true, false, "drain", false},
		{"-odq bob", true, false, "", false},
		{"-odd bob", true, false, "", false},
		{"-bq bob", true, false, "", false},
		{"-odi bob", true, false, "drain", true},
		{"-odi bob", false, false, "", false},
		{"-C /a/b.conf bob", true, false, "-C /a/b.conf drain", false},
	} {
		r := start(someMail, strings.Fields(tt.args)...)
		r.system.drain, r.system.config.Defer = tt.drain, tt.defr
		r.run().committed(t)
		equal(t, tt.args, strings.Join(r.system.started, " "), tt.want)
		equal(t, tt.args+": waits", r.system.waited, tt.wait)
		if tt.want != "" {
			equal(t, tt.args+": group given up", r.system.dropped, true)
		}
	}
	r := start(someMail, "bob")
	r.system.drain, r.system.startErr = true, errors.New("fork: resource temporarily unavailable")
	r.run().committed(t)
	equal(t, "stderr", r.stderr, "dma: warning: message "+testID+" is queued, but its delivery could not be started: fork: resource temporarily unavailable\n")
}

// TestInterrupt: a signal before the commit leaves nothing, and one after it
// changes nothing.
func TestInterrupt(t *testing.T) {
	// While the input has not ended.
	r := start("", "bob")
	in, w := io.Pipe()
	r.stdin = in
	r.interrupt = make(chan os.Signal, 1)
	go func() {
		io.WriteString(w, someMail)
		r.interrupt <- syscall.SIGTERM
	}()
	r.run()
	w.Close()
	equal(t, "status", r.status, 75)
	equal(t, "stderr", r.stderr, "dma: terminated: nothing was queued\n")
	equal(t, "drafts", len(r.system.drafts), 0)

	// While the draft is written.
	r = start(someMail, "bob")
	r.interrupt = make(chan os.Signal, 1)
	r.system.onCreate = func() { r.interrupt <- syscall.SIGINT }
	r.run()
	equal(t, "status", r.status, 75)
	equal(t, "stderr", r.stderr, "dma: interrupt: nothing was queued\n")
	if len(r.system.drafts) != 1 || r.system.drafts[0].committed || !r.system.drafts[0].aborted {
		t.Errorf("drafts %+v", r.system.drafts)
	}
}

// TestComplaint: whatever an error holds, one printable line comes out.
func TestComplaint(t *testing.T) {
	r := start(someMail, "bob")
	r.system.openErr = errors.New("a\nb\r\x1b\x00\u0085\xff" + strings.Repeat("x", 5000))
	r.run()
	if !strings.HasPrefix(r.stderr, "dma: a?b?????x") || len(r.stderr) > maxComplaint+20 || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("%.100q", r.stderr)
	}
}

// The spool's draft is a Draft.
var _ Draft = (*spooldir.Draft)(nil)
