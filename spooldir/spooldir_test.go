package spooldir

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
)

// newSpool makes a spool for a test.
func newSpool(t testing.TB) *Spool {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "spool")
	if err := Init(dir); err != nil {
		t.Fatal(err)
	}
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func recipients(addrs ...string) []Recipient {
	var r []Recipient
	for _, a := range addrs {
		r = append(r, Recipient{Address: a})
	}
	return r
}

// submit commits a message and returns its envelope's names.
func submit(t testing.TB, s *Spool, e Envelope, content string) []Name {
	t.Helper()
	d, err := s.Create(&e)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(d, content); err != nil {
		t.Fatal(err)
	}
	if err := d.Commit(); err != nil {
		t.Fatal(err)
	}
	var names []Name
	for n := range e.Recipients {
		names = append(names, NewName(d.ID(), n+1, e.Recipients[n].Label()))
	}
	return names
}

func files(t testing.TB, s *Spool, dir State) []string {
	t.Helper()
	entries, err := os.ReadDir(s.dir(dir))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestCommitAndOpen(t *testing.T) {
	s := newSpool(t)
	want := Envelope{
		Sender: "alice@example.org", UID: 1000, EightBit: true, UTF8: true, Return: "FULL", EnvelopeID: "id+2Bx y",
		Recipients: []Recipient{
			{Address: "bob@example.org", Notify: "SUCCESS,FAILURE", ORCPT: "rfc822;bob@example.org"},
			{Address: "odd \u00e9\xff %name@example.org", Original: "list@example.org"},
		},
	}
	content := "Subject: x\n\nbody without end\x00\xff"
	names := submit(t, s, want, content)
	if got := files(t, s, Tmp); len(got) != 0 {
		t.Errorf("tmp holds %q after the commit", got)
	}
	for i, name := range names {
		m, err := s.Open(New, name)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if err := m.Verify(t.Context()); err != nil {
			t.Error(err)
		}
		got, err := io.ReadAll(m.Content())
		if err != nil || string(got) != content {
			t.Errorf("content %q, %v; want %q", got, err, content)
		}
		if !reflect.DeepEqual(m.Recipients, want.Recipients) {
			t.Errorf("recipients %+v, want %+v", m.Recipients, want.Recipients)
		}
		if m.Sender != want.Sender || m.UID != 1000 || !m.EightBit || !m.UTF8 || m.Return != "FULL" || m.EnvelopeID != want.EnvelopeID {
			t.Errorf("envelope %+v, want %+v", m.Envelope, want)
		}
		if m.Name(i+1) != name {
			t.Errorf("name %s, want %s", m.Name(i+1), name)
		}
		if links, _ := m.Links(); links != 2 {
			t.Errorf("%d links, want 2", links)
		}
	}
}

// TestLargeContent crosses the buffer of a draft, where the envelope is
// written before its lengths are known.
func TestLargeContent(t *testing.T) {
	s := newSpool(t)
	for _, size := range []int{draftBuffer - 1, draftBuffer, draftBuffer + 1, 3*draftBuffer + 7} {
		content := strings.Repeat("0123456789abcde\n", size/16+1)[:size]
		name := submit(t, s, Envelope{Recipients: recipients("a@b")}, content)[0]
		m, err := s.Open(New, name)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Verify(t.Context()); err != nil {
			t.Error(err)
		}
		if m.ContentLength != int64(size) {
			t.Errorf("%d octets, want %d", m.ContentLength, size)
		}
		m.Close()
	}
}

// TestReaderChecks damages a committed file at every octet and cuts it at
// every length: nothing of it may be taken for the message.
func TestReaderChecks(t *testing.T) {
	s := newSpool(t)
	name := submit(t, s, Envelope{Sender: "a@b", Recipients: recipients("c@d")}, "Subject: x\n\nhello\n")[0]
	path := s.file(New, name.String())
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	try := func(what string, data []byte) {
		t.Helper()
		s.forgetEnvelope(name.ID)
		if err := os.WriteFile(path, data, 0); err != nil {
			t.Fatal(err)
		}
		m, err := s.Open(New, name)
		if err == nil {
			err = m.Verify(t.Context())
			m.Close()
		}
		var corrupt *CorruptError
		if !errors.As(err, &corrupt) {
			t.Errorf("%s: %v, want a CorruptError", what, err)
		}
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 0x01
		try(fmt.Sprintf("octet %d changed", i), bad)
		try(fmt.Sprintf("cut to %d octets", i), good[:i])
	}
	try("an octet more", append(bytes.Clone(good), 'x'))
}

func TestUncommittedIsNoMail(t *testing.T) {
	s := newSpool(t)
	e := Envelope{Recipients: recipients("a@b", "c@d")}
	d, err := s.Create(&e)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Abort()
	// The state between link and commit, made by hand.
	if err := d.finish(); err != nil {
		t.Fatal(err)
	}
	name := NewName(d.ID(), 1, "a@b")
	if err := os.Link(d.tmp, s.file(New, name.String())); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open(New, name); !errors.Is(err, ErrUncommitted) {
		t.Errorf("%v, want ErrUncommitted", err)
	}
	if err := os.Chmod(d.tmp, 0); err != nil { // a strange umask
		t.Fatal(err)
	}
	if _, err := s.Open(New, name); !errors.Is(err, ErrUncommitted) {
		t.Errorf("mode 0: %v, want ErrUncommitted", err)
	}
}

func TestHostileFiles(t *testing.T) {
	s := newSpool(t)
	name := NewName(NewID(time.Now()), 1, "a@b")
	path := s.file(New, name.String())
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	for what, make := range map[string]func() error{
		"symbolic link": func() error { return os.Symlink(secret, path) },
		"FIFO":          func() error { return syscall.Mkfifo(path, 0o640) },
		"directory":     func() error { return os.Mkdir(path, 0o640) },
		"hard link":     func() error { return os.Link(secret, path) },
		"empty file":    func() error { return os.WriteFile(path, nil, 0o640) },
		"strange mode":  func() error { return errors.Join(os.WriteFile(path, nil, 0o666), os.Chmod(path, 0o666)) },
		"sparse terabyte": func() error {
			return errors.Join(os.WriteFile(path, []byte(magic+" crc32=00000000 size=0001000000\n"), 0o640), os.Truncate(path, 1<<40))
		},
	} {
		t.Run(what, func(t *testing.T) {
			if err := make(); err != nil {
				t.Fatal(err)
			}
			_, err := s.Open(New, name)
			var corrupt *CorruptError
			if !errors.As(err, &corrupt) {
				t.Errorf("%v, want a CorruptError", err)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error tells the content: %v", err)
			}
			if _, err := s.Quarantine(New, name.String()); err != nil {
				t.Error(err)
			}
			if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("still in new: %v", err)
			}
		})
	}
	if got := files(t, s, Corrupt); len(got) != 7 {
		t.Errorf("corrupt holds %q, want all seven", got)
	}
}

// TestControlCharacters puts every control character into every value of an
// envelope whose checksum is right, as somebody can who has taken the submitting
// program over: the file is kept for a person, and our own writer makes none.
// Every other octet comes back as it was.
func TestControlCharacters(t *testing.T) {
	s := newSpool(t)
	values := map[string]func(e *Envelope) *string{
		"sender":   func(e *Envelope) *string { return &e.Sender },
		"envid":    func(e *Envelope) *string { return &e.EnvelopeID },
		"address":  func(e *Envelope) *string { return &e.Recipients[1].Address },
		"user":     func(e *Envelope) *string { return &e.Recipients[1].User },
		"detail":   func(e *Envelope) *string { return &e.Recipients[1].Detail },
		"target":   func(e *Envelope) *string { return &e.Recipients[1].Target },
		"original": func(e *Envelope) *string { return &e.Recipients[1].Original },
		"notify":   func(e *Envelope) *string { return &e.Recipients[1].Notify },
		"orcpt":    func(e *Envelope) *string { return &e.Recipients[1].ORCPT },
	}
	for what, value := range values {
		for c := range 256 {
			parent := NewID(time.Now())
			e := Envelope{
				ID: DeriveID(parent, 1, Child), Arrival: time.Unix(1e9, 0).UTC(), Sender: "a@b", Parents: []Parent{{NewName(parent, 1, "x")}},
				Recipients: []Recipient{{Address: "a@b"}, {Kind: Command, Address: "c@d", User: "c", Target: "id", Source: "forward"}},
			}
			*value(&e) = "x" + string([]byte{byte(c)}) + "y"
			control := (c < 0x20 || c == 0x7f) && !(c == '\t' && what == "target")
			got, err := parseEnvelope(e.encode())
			if !control {
				if err != nil || *value(got) != *value(&e) {
					t.Errorf("%s with %#02x: %v", what, c, err)
				}
				continue
			}
			if err == nil || strings.ContainsAny(err.Error(), string(rune(c))) {
				t.Errorf("%s with %#02x: %v", what, c, err)
			}
			if d, err := s.Create(&e); err == nil {
				d.Abort()
				t.Errorf("%s with %#02x: written", what, c)
			}
			path := s.file(New, e.Name(1).String())
			if err := os.WriteFile(path, e.encode(), 0o640); err != nil {
				t.Fatal(err)
			}
			var corrupt *CorruptError
			if _, err := s.Open(New, e.Name(1)); !errors.As(err, &corrupt) {
				t.Errorf("%s with %#02x: %v, want a CorruptError", what, c, err)
			}
		}
	}
}

// TestInternalFieldsNeedOwnId makes sure that a user's message cannot have
// what only dma makes.
func TestInternalFieldsNeedOwnID(t *testing.T) {
	s := newSpool(t)
	for what, e := range map[string]Envelope{
		"command": {Recipients: []Recipient{{Kind: Command, Address: "a@b", User: "a", Target: "id", Source: "forward"}}},
		"parent":  {Recipients: recipients("a@b"), Parents: []Parent{{NewName(NewID(time.Now()), 1, "x")}}},
		"child without parent": {
			ID:         DeriveID(NewID(time.Now()), 1, Child),
			Recipients: recipients("a@b"),
		},
	} {
		if d, err := s.Create(&e); err == nil {
			d.Abort()
			t.Errorf("%s: accepted", what)
		}
	}
}

func TestMove(t *testing.T) {
	s := newSpool(t)
	name := submit(t, s, Envelope{Recipients: recipients("a@b")}, "x\n")[0]
	src, dst := s.file(New, name.String()), s.file(Tempfail, name.String())

	if err := s.Move(name, New, Tempfail); err != nil {
		t.Fatal(err)
	}
	if err := s.Move(name, New, Tempfail); !errors.Is(err, ErrGone) {
		t.Errorf("a second move: %v, want ErrGone", err)
	}
	// The same inode in both: the further one stays.
	if err := os.Link(dst, src); err != nil {
		t.Fatal(err)
	}
	if err := s.Move(name, New, Tempfail); err != nil {
		t.Errorf("same inode in both: %v", err)
	}
	if at, _ := s.Find(name); !reflect.DeepEqual(at, []State{Tempfail}) {
		t.Errorf("it stands in %v, want tempfail alone", at)
	}
	// A step back with a stale name in the way.
	if err := os.Link(dst, src); err != nil {
		t.Fatal(err)
	}
	if err := s.Move(name, Tempfail, New); err != nil {
		t.Errorf("back: %v", err)
	}
	if at, _ := s.Find(name); !reflect.DeepEqual(at, []State{New}) {
		t.Errorf("it stands in %v, want new alone", at)
	}
	// Another file in the way goes to corrupt, unharmed.
	if err := os.WriteFile(dst, []byte("foreign"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := s.Move(name, New, Tempfail); err != nil {
		t.Errorf("another file in the way: %v", err)
	}
	if data, err := os.ReadFile(s.file(Corrupt, name.String())); err != nil || string(data) != "foreign" {
		t.Errorf("corrupt holds %q, %v", data, err)
	}
	// A missing directory is trouble, not the end of the name.
	if err := os.Rename(s.dir(Hold), s.dir(Hold)+"x"); err != nil {
		t.Fatal(err)
	}
	if err := s.Move(name, Tempfail, Hold); err == nil || errors.Is(err, ErrGone) {
		t.Errorf("without the directory: %v, want trouble", err)
	}
}

func TestNames(t *testing.T) {
	id := NewID(time.Date(2026, 11, 22, 18, 42, 16, 0, time.UTC))
	for _, addr := range []string{"bob@example.org", "a b", "\x00\n/../..", strings.Repeat("é", 400), "|/usr/bin/procmail -d x", ""} {
		name := NewName(id, 17, addr)
		if len(name.String()) > 255 || strings.ContainsAny(name.String(), "/\x00\n ") {
			t.Errorf("%q is no good file name", name)
		}
		got, err := ParseName(name.String())
		if err != nil || got != name || got.N != 17 || got.ID != id {
			t.Errorf("ParseName(%q) = %+v, %v", name, got, err)
		}
		if i := strings.LastIndexByte(name.String(), '%'); i >= 0 && i > len(name.String())-3 {
			t.Errorf("%q is cut within a %%XX", name)
		}
	}
	for _, bad := range []string{"", ".", "..", id, id + ".0-x", id + ".01-x", id + ".+1-x", id + ".10001-x", id + ".1", "x.1-y", id + "x.1-y", id + "e.1-y", strings.ToUpper(id) + ".1-y", id + ".1-" + strings.Repeat("y", 300)} {
		if _, err := ParseName(bad); err == nil {
			t.Errorf("ParseName(%q) took it", bad)
		}
	}
}

func TestDerivedIDs(t *testing.T) {
	id := NewID(time.Now())
	seen := map[string]bool{id: true}
	for n := 1; n <= 100; n++ {
		for _, k := range []Kind{Child, Bounce, Success, Delay} {
			d := DeriveID(id, n, k)
			if d != DeriveID(id, n, k) || seen[d] {
				t.Fatalf("%s is not a function of its cause alone, or not its own", d)
			}
			seen[d] = true
			if got, ok := IDKind(d); !ok || got != k {
				t.Errorf("IDKind(%s) = %v, %v", d, got, ok)
			}
		}
	}
	if k, ok := IDKind(id); !ok || k != Submitted {
		t.Errorf("IDKind(%s) = %v, %v", id, k, ok)
	}
}

func TestMaxRecipients(t *testing.T) {
	s := newSpool(t)
	e := Envelope{Recipients: make([]Recipient, MaxRecipients+1)}
	for i := range e.Recipients {
		e.Recipients[i].Address = fmt.Sprintf("u%d@example.org", i)
	}
	if _, err := s.Create(&e); err == nil || !strings.Contains(err.Error(), "10000") {
		t.Errorf("%v, want a refusal that names the limit", err)
	}
	e.Recipients = e.Recipients[:MaxRecipients]
	names := submit(t, s, e, "x\n")
	m, err := s.Open(New, names[MaxRecipients-1])
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if in, err := s.Standing(m, New); err != nil || len(in) != MaxRecipients {
		t.Errorf("%d names stand in new, %v", len(in), err)
	}
}
