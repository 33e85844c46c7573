package maillog

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/slogtest"
	"time"
	"unicode"
)

var update = flag.Bool("update", false, "write the golden file in testdata anew")

var noon = time.Date(2026, 3, 4, 12, 0, 0, 89e6, time.UTC)

// atNoon gives every record the same time.
type atNoon struct{ slog.Handler }

func (h atNoon) Handle(ctx context.Context, r slog.Record) error {
	r.Time = noon
	return h.Handler.Handle(ctx, r)
}

func logTo(b *bytes.Buffer) *Log { return New(slog.New(atNoon{NewHandler(b, nil)})) }

// everything calls each method at least once.
func everything(l *Log) {
	l.Started("queue", 4711, "/var/spool/dma")
	l.Sandboxed("queue", "no_new_privs=yes landlock=abi7 seccomp=yes")
	l.Submitted("01AB", "alice@example.org", 1000, 2048, 3)
	l.Queued("01AB", "", 1000, 2048, 3)
	l.Moved("01AB", 1, "bob@example.net", "new", "remote", "")
	l.Moved("01AB", 2, "carol", "forwarding", "tempfail", "home directory cannot be read")
	l.Expanded("01AB", 3, "staff", "01AB.c3", 5)
	l.Delivery(Delivery{ID: "01AB", N: 1, From: "alice@example.org", To: "bob@example.net",
		Relay: "mx.example.net[192.0.2.1]:25", TLS: "TLSv1.3,verified", Delay: 1234567 * time.Microsecond,
		Delays: Delays{20 * time.Millisecond, time.Second, 214567 * time.Microsecond},
		DSN:    "2.0.0", Status: Sent, Reply: "250 2.0.0 queued as 4XYZ"})
	l.Delivery(Delivery{ID: "01AB", N: 2, To: "carol@example.org", OrigTo: "c", Relay: "none", Delay: -time.Second,
		DSN: "4.3.0", Status: Deferred, Reply: "disk\nfull", Next: noon.Add(5 * time.Minute)})
	l.Delivery(Delivery{ID: "01AB", N: 3, From: "a b@example.org", To: "d", OrigTo: "d", Relay: "local", DSN: "5.1.1", Status: Bounced})
	l.Delivery(Delivery{ID: "01AB", N: 4, To: "e", Relay: "forward", Status: Expanded, DSN: "2.0.0"})
	l.Delivery(Delivery{ID: "01AB", N: 5, To: "f", Relay: "none", Status: Expired, DSN: "4.4.1", Delay: 5 * 24 * time.Hour})
	l.Delivery(Delivery{ID: "01AB", N: 6, To: "g", Relay: "none", Status: Deferred, DSN: "4.4.2", Duplicate: true, Reply: "no answer"})
	l.Bounced("01AB", "01AB.b", "alice@example.org", 2)
	l.DoubleBounce("01AB.b", "01AB.b.b", "postmaster")
	l.Kept("01AB.b.b", 1, "postmaster", "no such user")
	l.Corrupt("new/x y", "checksum differs", "corrupt/x y")
	l.AliasProblem("/etc/aliases", 7, `unbalanced quote in "root: \"|x"`)
	l.ConfigProblem("/etc/dma/dma.conf", 3, "unknown key SMARTHOTS")
	l.ForwardTrouble("alice", "/home/alice/.forward", "is world-writable")
	l.FileSystem("ext4 is mounted with nobarrier")
	l.Recovered("01AB", "removed an uncommitted child")
	l.Cleaned("tmp/01AC")
	l.DiskLow(1<<20, 16<<20)
	l.WatchUnavailable("too many inotify instances")
	l.WorkerTrouble("net", errors.New("exit status 2"))
	l.WorkerTrouble("net", nil)
	l.Stopped("queue", 4711, "SIGTERM")
}

func TestGolden(t *testing.T) {
	var b bytes.Buffer
	everything(logTo(&b))
	const file = "testdata/events.log"
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got := b.String(); got != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	// One event a method, and the golden file has them all.
	events := map[string]bool{}
	for line := range strings.Lines(b.String()) {
		events[strings.Fields(line)[2]] = true
	}
	if methods := reflect.TypeFor[*Log]().NumMethod(); len(events) != methods {
		t.Errorf("%d events from %d methods", len(events), methods)
	}
}

func TestNilLogger(t *testing.T) { everything(New(nil)) }

func TestObserved(t *testing.T) {
	var got []string
	observer := func(name string) func(Delivery) { return func(d Delivery) { got = append(got, name+d.ID) } }
	Observed(Observed(New(nil), observer("first")), observer("second")).Delivery(Delivery{ID: "X"})
	if want := []string{"firstX", "secondX"}; !slices.Equal(got, want) {
		t.Errorf("observed %q, want %q", got, want)
	}
}

func TestLevels(t *testing.T) {
	for level, want := range map[slog.Level]int{slog.LevelInfo: 28, slog.LevelWarn: 13, slog.LevelError: 5} {
		var b bytes.Buffer
		everything(New(slog.New(NewHandler(&b, level))))
		if got := strings.Count(b.String(), "\n"); got != want {
			t.Errorf("%d lines at level %s, want %d:\n%s", got, level, want, b.String())
		}
	}
}

// pair is a key and a value as a reader of the log finds them.
type pair struct{ key, value string }

// parseLine is a reader for the documented format, without the time.
func parseLine(line string) (level, event string, pairs []pair, err error) {
	if strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") {
		return "", "", nil, fmt.Errorf("not one line: %q", line)
	}
	line = strings.TrimSuffix(line, "\n")
	for _, r := range line {
		if unicode.IsControl(r) || r == unicode.ReplacementChar || !strconv.IsPrint(r) {
			return "", "", nil, fmt.Errorf("%q is not printable in %q", r, line)
		}
	}
	level, line, _ = strings.Cut(line, " ")
	event, line, _ = strings.Cut(line, " ")
	for line != "" {
		key, rest, ok := strings.Cut(line, "=")
		if !ok || key == "" || strings.ContainsAny(key, ` "`) {
			return "", "", nil, fmt.Errorf("no pair at %q", line)
		}
		value, after := rest, ""
		if strings.HasPrefix(rest, `"`) {
			quoted, err := strconv.QuotedPrefix(rest)
			if err != nil {
				return "", "", nil, fmt.Errorf("bad quotes at %q", rest)
			}
			if value, err = strconv.Unquote(quoted); err != nil {
				return "", "", nil, err
			}
			after = rest[len(quoted):]
			if after != "" && after[0] != ' ' {
				return "", "", nil, fmt.Errorf("no blank after quotes at %q", rest)
			}
		} else if i := strings.IndexByte(rest, ' '); i >= 0 {
			value, after = rest[:i], rest[i:]
		}
		pairs = append(pairs, pair{key, value})
		line = strings.TrimPrefix(after, " ")
	}
	return level, event, pairs, nil
}

var hostile = []string{
	"", " ", "a", "a b", "\n", "\r\n", "\x00", "\x1b[31m", "\x7f", "\u0085", "\u2028", "\u202e", "\xff", "ü", `"`, `\`, `\n`, `a"b`, "=",
	"x> to=<y", "x status=sent", "x\n2026-03-04T12:00:00.089Z info delivery id=forged", `" status="sent`,
	strings.Repeat("x", 5000), strings.Repeat("\xff", 5000), strings.Repeat("ü", 2000), strings.Repeat("\n", 2000),
}

func FuzzDelivery(f *testing.F) {
	for _, v := range hostile {
		f.Add(v, "from", "to", "orig", "relay", "tls", "dsn", "status", "reply")
		f.Add(v, v, v, v, v, v, v, v, v)
	}
	f.Fuzz(func(t *testing.T, id, from, to, orig, relay, tls, status, dsn, reply string) {
		var b bytes.Buffer
		New(slog.New(noTime{NewHandler(&b, nil)})).Delivery(Delivery{ID: id, N: 7, From: from, To: to, OrigTo: orig, Relay: relay,
			TLS: tls, DSN: dsn, Status: Status(status), Reply: reply, Next: noon})
		level, event, got, err := parseLine(b.String())
		if err != nil {
			t.Fatal(err)
		}
		if event != EventDelivery || level != "info" && level != "warn" {
			t.Errorf("event %q at level %q", event, level)
		}
		angle := func(s string) string { return "<" + strings.TrimSuffix(strings.TrimPrefix(s, "<"), ">") + ">" }
		want := []pair{{"id", id}, {"n", "7"}, {"from", angle(from)}, {"to", angle(to)}}
		if orig != "" && orig != to {
			want = append(want, pair{"orig_to", angle(orig)})
		}
		want = append(want, pair{"relay", relay})
		if tls != "" {
			want = append(want, pair{"tls", tls})
		}
		want = append(want, pair{"delay", "0"}, pair{"delays", "0/0/0"}, pair{"dsn", dsn}, pair{"status", status})
		if reply != "" {
			want = append(want, pair{"reply", reply})
		}
		want = append(want, pair{"next", "2026-03-04T12:00:00Z"})
		for i := range want {
			if i < len(got) && got[i] == (pair{"cut", "true"}) {
				if i != len(got)-1 || b.Len() < maxBody/2 {
					t.Errorf("a line of %d bytes was cut: %v", b.Len(), got)
				}
				return
			}
			if v := want[i].value; len(v) > maxValue {
				// A shortened value begins like the whole one and says so.
				if i >= len(got) || got[i].key != want[i].key || len(got[i].value) > maxValue ||
					!strings.HasPrefix(v, strings.TrimSuffix(got[i].value, "...")) || !strings.HasSuffix(got[i].value, "...") {
					t.Fatalf("pair %d is not %.80v", i, want[i])
				}
				continue
			}
			if i >= len(got) || got[i] != want[i] {
				t.Fatalf("pair %d is not %q in %q", i, want[i], b.String())
			}
		}
		if len(got) != len(want) {
			t.Errorf("%d pairs, want %d", len(got), len(want))
		}
	})
}

// noTime drops the time of records.
type noTime struct{ slog.Handler }

func (h noTime) Handle(ctx context.Context, r slog.Record) error {
	r.Time = time.Time{}
	return h.Handler.Handle(ctx, r)
}

func TestHandlerValues(t *testing.T) {
	cases := []struct {
		attr slog.Attr
		want string
	}{
		{slog.String("k", "v"), "k=v"},
		{slog.String("k", ""), `k=""`},
		{slog.String("k", "a=b"), "k=a=b"},
		{slog.String("k", "a b"), `k="a b"`},
		{slog.String("k", "a\nb"), `k="a\nb"`},
		{slog.String("k", "ü"), "k=ü"},
		{slog.String("bad key\n", "v"), "bad_key_=v"},
		{slog.Int("k", -3), "k=-3"},
		{slog.Bool("k", true), "k=true"},
		{slog.Uint64("k", 1<<63), "k=9223372036854775808"},
		{slog.Duration("k", time.Second), "k=1s"},
		{slog.Time("k", noon), "k=2026-03-04T12:00:00.089Z"},
		{slog.Any("k", errors.New("no such\tfile")), `k="no such\tfile"`},
		{slog.Group("g", slog.Int("a", 1), slog.Group("h", slog.Int("b", 2))), "g.a=1 g.h.b=2"},
		{slog.Group("", slog.Int("a", 1)), "a=1"},
		{slog.String("k", strings.Repeat("ü", 600)), "k=" + strings.Repeat("ü", 510) + "..."},
	}
	for _, c := range cases {
		var b bytes.Buffer
		slog.New(noTime{NewHandler(&b, nil)}).LogAttrs(context.Background(), slog.LevelInfo, "e", c.attr)
		if want := "info e " + c.want + "\n"; b.String() != want {
			t.Errorf("got %q, want %q", b.String(), want)
		}
	}
}

func TestLongLineIsCutAtAPair(t *testing.T) {
	var attrs []slog.Attr
	for i := range 40 {
		attrs = append(attrs, slog.String("k"+strconv.Itoa(i), strings.Repeat("\n", 300)))
	}
	var b bytes.Buffer
	h := noTime{NewHandler(&b, nil).WithAttrs(attrs)}
	slog.New(h).LogAttrs(context.Background(), slog.LevelInfo, "e", attrs...)
	_, _, pairs, err := parseLine(b.String())
	if err != nil {
		t.Fatal(err)
	}
	if n := b.Len(); n > maxBody+len(" cut=true\n") || n < maxBody-700 {
		t.Errorf("line of %d bytes", n)
	}
	if last := pairs[len(pairs)-1]; last != (pair{"cut", "true"}) {
		t.Errorf("last pair is %v", last)
	}
}

// TestHandlerContract runs the standard library's checks of a slog.Handler.
func TestHandlerContract(t *testing.T) {
	var b bytes.Buffer
	err := slogtest.TestHandler(NewHandler(&b, nil), func() []map[string]any {
		var results []map[string]any
		for line := range strings.Lines(b.String()) {
			m := map[string]any{}
			if first, rest, _ := strings.Cut(line, " "); strings.Contains(first, "T") {
				m[slog.TimeKey], line = first, rest
			}
			level, event, pairs, err := parseLine(line)
			if err != nil {
				t.Fatal(err)
			}
			m[slog.LevelKey], m[slog.MessageKey] = level, event
			for _, p := range pairs {
				at := m
				path := strings.Split(p.key, ".")
				for _, group := range path[:len(path)-1] {
					if at[group] == nil {
						at[group] = map[string]any{}
					}
					at = at[group].(map[string]any)
				}
				at[path[len(path)-1]] = p.value
			}
			results = append(results, m)
		}
		return results
	})
	if err != nil {
		t.Error(err)
	}
}

// writes counts calls of Write.
type writes struct{ lines []string }

func (w *writes) Write(p []byte) (int, error) {
	w.lines = append(w.lines, string(p))
	return len(p), nil
}

func TestOneWriteALine(t *testing.T) {
	w := new(writes)
	l := New(slog.New(NewHandler(w, nil)))
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() { l.Cleaned("tmp/" + strconv.Itoa(i)) })
	}
	wg.Wait()
	if len(w.lines) != 50 {
		t.Fatalf("%d writes", len(w.lines))
	}
	var names []string
	for _, line := range w.lines {
		_, rest, _ := strings.Cut(line, " ")
		_, _, pairs, err := parseLine(rest)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, pairs[0].value)
	}
	slices.Sort(names)
	if n := len(slices.Compact(names)); n != 50 {
		t.Errorf("%d different lines", n)
	}
}
