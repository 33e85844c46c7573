package docs_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"dma/spooldir"
)

// TestSpoolExamples has the program read the examples of dma-spool(5).
func TestSpoolExamples(t *testing.T) {
	text := section(t, spoolPage, "EXAMPLES")
	blocks := items(text, `(?s)^\.Bd -literal\n(.*?)^\.Ed$`)
	names := items(text, `^\.Pa (\S+)(?: \.)?$`)
	if len(blocks) != 2 || len(names) != 2 {
		t.Fatalf("%s has %d examples and %d names", spoolPage, len(blocks), len(names))
	}
	s := newSpool(t)
	first := filepath.Join(s.Path(), "new", names[0])
	writeFile(t, first, blocks[0], 0o640)
	if err := os.Link(first, filepath.Join(s.Path(), "new", names[1])); err != nil {
		t.Fatal(err)
	}
	for _, file := range names {
		name, err := spooldir.ParseName(file)
		if err != nil {
			t.Fatal(err)
		}
		m, err := s.Open(spooldir.New, name)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Verify(t.Context()); err != nil {
			t.Error(err)
		}
		m.Close()
		writeFile(t, filepath.Join(s.Path(), "log", name.ID), blocks[1], 0o600)
		j, err := s.ReadJournal(name.ID)
		if err != nil {
			t.Fatal(err)
		}
		if j.Damaged != 0 || !j.Delivered(1) || j.Attempts(2) != 1 || j.Next(2).IsZero() {
			t.Errorf("the example of a journal is read as %+v", j)
		}
	}
}

// What testdata/read-spool.py prints.
type (
	readSpool struct {
		Recipients []readName
		Journals   map[string]readJournal
	}
	readName struct {
		State, Name, ID, Content string
		N                        int
		Corrupt, Derived         string
		Uncommitted              bool
		Envelope                 readEnvelope
	}
	readEnvelope struct {
		ID, Arrival, Sender, Envid, Body, Ret string
		UID, Depth                            int
		SMTPUTF8                              bool
		Content                               struct{ Length int64 }
		Parents                               []string
		Recipients                            []map[string]string
	}
	readJournal struct {
		Entries []readEntry
		Damaged int
		Due     int64
	}
	readEntry struct {
		Time, Event, Status, Relay, Reply, Next, DSN, Owner, Duplicate string
		Recipients                                                     []int
	}
)

// TestReader makes a spool and has it read by a program that knows nothing but
// dma-spool(5): it has to find what was put there.
func TestReader(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3")
	}
	s := newSpool(t)
	w := &writer{t: t, spool: s, placed: make(map[string]placed)}
	w.messages()
	w.spoiled()
	wantJournal := w.journal()

	var stderr bytes.Buffer
	cmd := exec.Command(python, "testdata/read-spool.py", s.Path())
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("read-spool.py: %v\n%s", err, &stderr)
	}
	var got readSpool
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	for _, r := range got.Recipients {
		want, ok := w.placed[r.State+"/"+r.Name]
		if !ok {
			t.Errorf("%s/%s: nobody put it there", r.State, r.Name)
			continue
		}
		delete(w.placed, r.State+"/"+r.Name)
		want.compare(t, r)
	}
	for at := range w.placed {
		t.Errorf("%s was not found", at)
	}
	if j := got.Journals[w.first]; len(got.Journals) != 1 || !reflect.DeepEqual(j, wantJournal) {
		t.Errorf("journals are read as %+v, and not as %+v", got.Journals, wantJournal)
	}
}

// placed is what was put under one name.
type placed struct {
	env         *spooldir.Envelope
	n           int
	content     string
	uncommitted bool
	corrupt     string // part of the reason
}

func (p placed) compare(t *testing.T, r readName) {
	t.Helper()
	at := r.State + "/" + r.Name
	if p.uncommitted || p.corrupt != "" {
		if r.Uncommitted != p.uncommitted || !strings.Contains(r.Corrupt, p.corrupt) || p.corrupt == "" && r.Corrupt != "" {
			t.Errorf("%s: uncommitted %v, corrupt %q, want %v, %q", at, r.Uncommitted, r.Corrupt, p.uncommitted, p.corrupt)
		}
		return
	}
	e, x := p.env, r.Envelope
	want := readEnvelope{
		ID: e.ID, Arrival: stamp(e.Arrival), Sender: latin1(e.Sender), Envid: latin1(e.EnvelopeID),
		Ret: e.Return, UID: e.UID, Depth: e.Depth, SMTPUTF8: e.UTF8, Parents: []string{},
	}
	if e.EightBit {
		want.Body = "8bit"
	}
	want.Content.Length = int64(len(p.content))
	for _, parent := range e.Parents {
		want.Parents = append(want.Parents, parent.Name.String())
	}
	for _, rcpt := range e.Recipients {
		m := map[string]string{"kind": rcpt.Kind.String()}
		for key, value := range map[string]string{
			"address": rcpt.Address, "user": rcpt.User, "detail": rcpt.Detail, "target": rcpt.Target,
			"source": rcpt.Source, "original": rcpt.Original, "notify": rcpt.Notify, "orcpt": rcpt.ORCPT,
		} {
			if value != "" {
				m[key] = latin1(value)
			}
		}
		want.Recipients = append(want.Recipients, m)
	}
	if r.Corrupt != "" || r.Uncommitted || r.ID != e.ID || r.N != p.n || !reflect.DeepEqual(x, want) {
		gotJSON, _ := json.Marshal(x)
		wantJSON, _ := json.Marshal(want)
		t.Errorf("%s: corrupt %q, envelope read as\n%.2000q, want\n%.2000q", at, r.Corrupt, gotJSON, wantJSON)
	}
	if r.Content != latin1(p.content) {
		t.Errorf("%s: the content differs", at)
	}
	if len(e.Parents) > 0 && r.Derived != e.ID {
		t.Errorf("%s: the id follows as %s, and is %s", at, r.Derived, e.ID)
	}
}

// writer fills a spool and remembers with what.
type writer struct {
	t      *testing.T
	spool  *spooldir.Spool
	first  string // id of the first message
	placed map[string]placed
}

// put commits a message and returns its names.
func (w *writer) put(e spooldir.Envelope, content string) []spooldir.Name {
	w.t.Helper()
	d, err := w.spool.Create(&e)
	if err != nil {
		w.t.Fatal(err)
	}
	// In pieces, so that a long one is written before its length is known.
	for rest := content; rest != ""; {
		n := min(len(rest), 50_000)
		if _, err := d.Write([]byte(rest[:n])); err != nil {
			w.t.Fatal(err)
		}
		rest = rest[n:]
	}
	e.ID, e.Arrival = d.ID(), d.Arrival()
	if err := d.Commit(); err != nil {
		w.t.Fatal(err)
	}
	var names []spooldir.Name
	for n := 1; n <= len(e.Recipients); n++ {
		name := e.Name(n)
		names = append(names, name)
		w.placed["new/"+name.String()] = placed{env: &e, n: n, content: content}
	}
	return names
}

// move moves a name by hand.
func (w *writer) move(name spooldir.Name, to spooldir.State) {
	w.t.Helper()
	if err := w.spool.Move(name, spooldir.New, to); err != nil {
		w.t.Fatal(err)
	}
	w.placed[string(to)+"/"+name.String()] = w.placed["new/"+name.String()]
	delete(w.placed, "new/"+name.String())
}

func (w *writer) messages() {
	names := w.put(spooldir.Envelope{
		Sender: "alice@demo.example", UID: 1000, EightBit: true, UTF8: true, Return: "HDRS", EnvelopeID: "a+2Bb%c",
		Recipients: []spooldir.Recipient{
			{Address: "bob@example.org", Notify: "SUCCESS,FAILURE", ORCPT: "rfc822;bob@example.org"},
			{Address: "team"},
			{Address: "odd %\"name\"@grün.example"},
			{Address: strings.Repeat("%long", 100) + "@example.org"},
		},
	}, "Subject: gr\xfc\xdfe\r\n\n\x00 no newline at the end")
	w.first = names[0].ID
	for i, state := range []spooldir.State{spooldir.Tempfail, spooldir.Sent, spooldir.Hold} {
		w.move(names[i], state)
	}
	w.put(spooldir.Envelope{UID: -1, Recipients: []spooldir.Recipient{{Address: "nobody@example.org"}}}, "")
	w.put(spooldir.Envelope{UID: 1, Sender: "long", Recipients: []spooldir.Recipient{{Address: "x"}}}, strings.Repeat("From a long one\n", 17_000))

	// Labels of all kinds, cut at all places.
	many := spooldir.Envelope{Sender: "many", UID: 2}
	random := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		addr := make([]byte, 1+random.IntN(200))
		for i := range addr {
			if addr[i] = byte(random.IntN(256)); addr[i] < ' ' || addr[i] == 0x7f || random.IntN(2) == 0 {
				addr[i] = 'x'
			}
		}
		many.Recipients = append(many.Recipients, spooldir.Recipient{Address: string(addr)})
	}
	w.put(many, "Subject: many\n\n")

	child := w.put(spooldir.Envelope{
		ID: spooldir.DeriveID(w.first, 2, spooldir.Child), UID: 1000, Sender: "alice@demo.example", Depth: 1,
		Parents: []spooldir.Parent{{Name: names[1]}},
		Recipients: []spooldir.Recipient{
			{Kind: spooldir.Address, Address: "carol@example.org", Original: "team"},
			{Kind: spooldir.LocalUser, Address: "team", User: "dave", Detail: "lists"},
			{Kind: spooldir.Mailbox, Address: "team", User: "erin"},
			{Kind: spooldir.File, Address: "team", User: "erin", Target: "/home/erin/a mail/", Source: "forward"},
			{Kind: spooldir.Command, Address: "team", User: "list", Target: "tee -a $HOME/x | cat", Source: "aliases"},
		},
	}, "Delivered-To: team@demo.example\n\nHello\n")
	w.move(child[3], spooldir.Local)
	w.move(child[1], spooldir.Forwarding)
	bounce := w.put(spooldir.Envelope{
		ID: spooldir.DeriveID(w.first, 3, spooldir.Bounce), UID: 0,
		Parents:    []spooldir.Parent{{Name: names[2]}, {Name: names[3]}},
		Recipients: []spooldir.Recipient{{Address: "alice@demo.example", Notify: "NEVER"}},
	}, "Subject: a bounce\n\n")
	w.move(bounce[0], spooldir.Remote)
}

// spoiled puts files there that are no messages, and has the program say so.
func (w *writer) spoiled() {
	good := w.put(spooldir.Envelope{UID: 3, Sender: "sss", Recipients: []spooldir.Recipient{{Address: "one"}, {Address: "two"}}}, "Subject: x\n\nbody\n")
	delete(w.placed, "new/"+good[1].String())
	os.Remove(filepath.Join(w.spool.Path(), "new", good[1].String()))
	data := read(w.t, filepath.Join(w.spool.Path(), "new", good[0].String()))
	swap := func(old, new string) string {
		if strings.Count(data, old) != 1 || len(old) != len(new) {
			w.t.Fatalf("%q cannot take the place of %q", new, old)
		}
		return strings.Replace(data, old, new, 1)
	}
	id, two := good[0].ID, good[1].String()
	for _, c := range []struct {
		state, file, data, reason string
		mode                      os.FileMode
	}{
		{"permfail", two, swap("body", "bodY"), "checksum of the content", 0o640},
		{"tempfail", two, swap("sender sss", "sender Sss"), "checksum of the envelope", 0o640},
		{"permfail", id + ".1-one", sealed(swap("sender sss", "sender %0A")), "a control character", 0o640},
		{"local", two, data[:len(data)-1], "length of the content", 0o640},
		{"remote", two, data[:100], "size of the envelope", 0o640},
		{"forwarding", two, swap("dma-message 1", "dma-message 2"), "first line", 0o640},
		{"sent", two, data, "mode", 0o660},
		{"hold", id + ".2-three", data, "the name", 0o640},
		{"hold", id + ".3-three", data, "no such recipient", 0o640},
		{"hold", "20260304T050607-0123456789abcdef.1-one", data, "the id", 0o640},
		{"hold", id + ".02-two", data, "not the name", 0o640},
		{"new", two, data, "", 0o600},
	} {
		writeFile(w.t, filepath.Join(w.spool.Path(), c.state, c.file), c.data, c.mode)
		w.placed[c.state+"/"+c.file] = placed{corrupt: c.reason, uncommitted: c.reason == ""}
		err := w.open(spooldir.State(c.state), c.file)
		var corrupt *spooldir.CorruptError
		if c.reason == "" && !errors.Is(err, spooldir.ErrUncommitted) || c.reason != "" && c.reason != "not the name" && !errors.As(err, &corrupt) {
			w.t.Errorf("%s/%s, %s: the program itself says %v", c.state, c.file, c.reason, err)
		}
	}
}

// sealed gives a message that was changed the checksum of its envelope.
func sealed(data string) string {
	envelope, _, _ := strings.Cut(data, "\n\n")
	sum := crc32.ChecksumIEEE([]byte(envelope[28:] + "\n\n"))
	return data[:len("dma-message 1 crc32=")] + fmt.Sprintf("%08x", sum) + data[28:]
}

// open has the program judge a file.
func (w *writer) open(state spooldir.State, file string) error {
	name, err := spooldir.ParseName(file)
	if err != nil {
		return err
	}
	// A spool that remembers nothing.
	s, err := spooldir.Open(w.spool.Path())
	if err != nil {
		return err
	}
	m, err := s.Open(state, name)
	if err != nil {
		return err
	}
	defer m.Close()
	return m.Verify(w.t.Context())
}

// journal writes the journal of the first message, with two lines that a crash
// has torn and one that it has spoilt, and returns how it has to be read.
func (w *writer) journal() readJournal {
	at := time.Date(2026, 3, 4, 5, 6, 7, 89_000, time.UTC)
	if _, err := w.spool.CreateJournal(w.first); err != nil {
		w.t.Fatal(err)
	}
	owner := 4242
	entries := []spooldir.Entry{
		{Time: at, Event: spooldir.Queued, Owner: &owner},
		{Time: at, Event: spooldir.Deferred, Recipients: []int{1, 2, 3, 7, 9, 10}, Status: "4.2.1",
			Relay: "mx.example[192.0.2.1]:25", Reply: "451 4.2.1 100% \"grün\" #busy #\x01", Next: at.Add(time.Minute)},
		{Time: at, Event: spooldir.Deferred, Recipients: []int{5}, Status: "4.4.2", Uncertain: true, Next: at.Add(time.Minute)},
		{Time: at, Event: spooldir.Delivered, Recipients: []int{4}, Status: "2.0.0", Relay: "local", DSN: true},
		{Time: at, Event: spooldir.Reported, Recipients: []int{4}, Reply: "report"},
	}
	file := filepath.Join(w.spool.Path(), spooldir.LogDir, w.first)
	for i, e := range entries {
		if err := w.spool.AppendJournal(w.first, false, e); err != nil {
			w.t.Fatal(err)
		}
		switch i {
		case 0: // an append that was cut off
			appendFile(w.t, file, string(entries[1].Encode()[:40]))
		case 1:
			line := entries[3].Encode()
			line[3] ^= 1
			appendFile(w.t, file, string(line)+"\n")
		case 4: // and another one, that nothing follows
			appendFile(w.t, file, string(entries[1].Encode()[:40]))
		}
	}
	due := at.Add(time.Minute)
	if err := w.spool.SetDue(w.first, due); err != nil {
		w.t.Fatal(err)
	}
	j := readJournal{Damaged: 3, Due: due.Unix()}
	for _, e := range entries {
		x := readEntry{Time: stamp(e.Time), Event: string(e.Event), Status: e.Status, Relay: latin1(e.Relay), Reply: latin1(e.Reply)}
		if x.Recipients = e.Recipients; x.Recipients == nil {
			x.Recipients = []int{}
		}
		if !e.Next.IsZero() {
			x.Next = stamp(e.Next)
		}
		if e.DSN {
			x.DSN = "relayed"
		}
		if e.Uncertain {
			x.Duplicate = "possible"
		}
		if e.Owner != nil {
			x.Owner = strconv.Itoa(*e.Owner)
		}
		j.Entries = append(j.Entries, x)
	}
	return j
}

func newSpool(t *testing.T) *spooldir.Spool {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "spool")
	if err := spooldir.Init(dir); err != nil {
		t.Fatal(err)
	}
	s, err := spooldir.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func writeFile(t *testing.T, path, data string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
}

func appendFile(t *testing.T, path, data string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(data); err != nil {
		t.Fatal(err)
	}
}

func stamp(t time.Time) string { return fmt.Sprintf("%d.%06d", t.Unix(), t.Nanosecond()/1000) }

// latin1 makes a character of each octet, as read-spool.py does.
func latin1(s string) string {
	runes := make([]rune, len(s))
	for i := range len(s) {
		runes[i] = rune(s[i])
	}
	return string(runes)
}

// TestReaderKnowsOnlyThePage makes sure that the reader asks no program of
// ours and no module beyond Python's own.
func TestReaderKnowsOnlyThePage(t *testing.T) {
	imports := items(read(t, "testdata/read-spool.py"), `^\s*(?:import|from) (\w+)`)
	own := regexp.MustCompile(`^(errno|hashlib|json|os|re|stat|sys|zlib)$`)
	for _, i := range imports {
		if !own.MatchString(i) {
			t.Errorf("read-spool.py imports %s", i)
		}
	}
	if len(imports) == 0 {
		t.Error("no imports found")
	}
}
