package sendmail

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

func newScratch() (Scratch, error) { return &memoryFile{}, nil }

// readString reads a message from a string.
func readString(t testing.TB, in string, dot bool) (header, body string) {
	t.Helper()
	m, err := readMessage(strings.NewReader(in), dot, newScratch)
	if err != nil {
		t.Fatalf("%.60q: %v", in, err)
	}
	return split(t, m)
}

func split(t testing.TB, m *message) (header, body string) {
	t.Helper()
	defer m.close()
	var b bytes.Buffer
	if err := m.writeBody(&b); err != nil {
		t.Fatal(err)
	}
	return string(m.header), b.String()
}

func TestReadMessage(t *testing.T) {
	const dated = "From alice Thu Jan  1 00:00:00 1970\n"
	for _, tt := range []struct{ name, in, header, body string }{
		{"plain", "To: a\nSubject: s\n\nbody\n", "To: a\nSubject: s\n", "body\n"},
		{"folded", "To: a,\n\tb\n c\n\nbody\n", "To: a,\n\tb\n c\n", "body\n"},
		{"empty input", "", "", ""},
		{"only a line end", "\n", "", ""},
		{"no header", "\nbody\n", "", "body\n"},
		{"text", "Hello,\nhow are you?\n", "", "Hello,\nhow are you?\n"},
		{"text that begins with a blank", " To: a\n", "", " To: a\n"},
		{"text that begins with a colon", ": a\n", "", ": a\n"},
		{"text with a colon after words", "Dear all: hi\n", "", "Dear all: hi\n"},
		{"no end of the header", "To: a\n", "To: a\n", ""},
		{"no final newline in the header", "To: a", "To: a\n", ""},
		{"no final newline in the body", "To: a\n\nx", "To: a\n", "x"},
		{"header ends at a line that is no field", "To: a\nbody here\n\nTo: b\n", "To: a\n", "body here\n\nTo: b\n"},
		{"blank before the colon", "To : a\n\nb\n", "To : a\n", "b\n"},
		{"field From with a blank", "From : a\n\nb\n", "From : a\n", "b\n"},
		{"line of blanks in the header", "To: a\n  \nCc: b\n\nx\n", "To: a\n  \nCc: b\n", "x\n"},

		{"CRLF throughout", "To: a\r\n b\r\n\r\nx\r\n\r\ny\r\n", "To: a\n b\n", "x\n\ny\n"},
		{"CRLF without a final one", "To: a\r\n\r\nx\r\ny\r", "To: a\n", "x\ny\r"},
		{"CRLF, text", "x y\r\nz\r\n", "", "x y\nz\n"},
		{"CRLF with more CRs", "\r\nx\r\r\n\r", "", "x\r\n\r"},
		{"CRLF in the header only", "To: a\r\n\r\nx\ny\n", "To: a\n", "x\ny\n"},
		{"CRLF in the body only", "To: a\n\nx\r\ny\r\n", "To: a\n", "x\r\ny\r\n"},
		{"one LF in the body", "To: a\r\n\r\nx\r\ny\n", "To: a\n", "x\r\ny\n"},
		{"one LF in the header", "To: a\nCc: b\r\n\r\nx\r\n", "To: a\nCc: b\n", "x\r\n"},
		{"CRs in lines", "To: a\n\nx\ry\r\rz\n", "To: a\n", "x\ry\r\rz\n"},
		{"body fields after a CRLF header", "To: a\r\n\r\nBcc: b\r\n", "To: a\n", "Bcc: b\n"},

		{"NUL", "Subject: a\x00b\n\n\x00\x00", "Subject: a\x00b\n", "\x00\x00"},
		{"8-bit", "Subject: \xe4\xff\n\n\x80\xfe\n", "Subject: \xe4\xff\n", "\x80\xfe\n"},

		{"dot", "To: a\n\nx\n.\nafter\n", "To: a\n", "x\n"},
		{"dot with CRLF", "To: a\r\n\r\nx\r\n.\r\nafter\r\n", "To: a\n", "x\n"},
		{"dot in the header", "To: a\n.\nafter\n", "To: a\n", ""},
		{"dot at once", ".\nafter\n", "", ""},
		{"dot without newline", "To: a\n\nx\n.", "To: a\n", "x\n."},
		{"dots that are text", "\n..\n.x\n. \n x.\n", "", "..\n.x\n. \n x.\n"},
		{"dot at the end of a long line", "\n" + strings.Repeat("x", 64<<10) + ".\ny\n", "", strings.Repeat("x", 64<<10) + ".\ny\n"},

		{"separator", dated + "To: a\n\nx\n", "To: a\n", "x\n"},
		{"quoted separator", ">" + dated + "To: a\n\nx\n", "To: a\n", "x\n"},
		{"separator with CRLF", strings.TrimSuffix(dated, "\n") + "\r\nTo: a\r\n\r\nx\r\n", "To: a\n", "x\n"},
		{"two separators", dated + ">" + dated + "To: a\n\nx\n", "To: a\n", "x\n"},
		{"separator before text", dated + "some text\n", "", "some text\n"},
		{"separator without a date", "From me\nTo: a\n\nx\n", "To: a\n", "x\n"},
		{"separator in the header", "To: a\n" + dated + "x\n", "To: a\n", dated + "x\n"},
		{"text that begins with From", "From here on\nthere is text.\n", "", "From here on\nthere is text.\n"},
		{"only From", "From here on", "", "From here on"},
		{"From and an empty line", "From me\n\nTo: a\n", "", "From me\n\nTo: a\n"},
		{"From and a dot", "From me\n.\nTo: a\n", "", "From me\n"},
		{"many Froms", strings.Repeat("From me\n", 200) + "To: a\n", "", strings.Repeat("From me\n", 200) + "To: a\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			header, body := readString(t, tt.in, true)
			equal(t, "header", header, tt.header)
			equal(t, "body", body, tt.body)
			// The result does not depend on how the input comes.
			m, err := readMessage(iotest.OneByteReader(strings.NewReader(tt.in)), true, newScratch)
			if err != nil {
				t.Fatal(err)
			}
			header, body = split(t, m)
			equal(t, "header, octet by octet", header, tt.header)
			equal(t, "body, octet by octet", body, tt.body)
		})
	}
}

func TestIgnoreDots(t *testing.T) {
	header, body := readString(t, "To: a\n\nx\n.\nafter\n.", false)
	equal(t, "header", header, "To: a\n")
	equal(t, "body", body, "x\n.\nafter\n.")
	// A dot is no header field.
	header, body = readString(t, "To: a\n.\nafter\n", false)
	equal(t, "header", header, "To: a\n")
	equal(t, "body", body, ".\nafter\n")
}

// repeat is an input of n times one octet, which takes no memory.
type repeat struct {
	c byte
	n int64
}

func (r *repeat) Read(p []byte) (int, error) {
	n := int(min(int64(len(p)), r.n))
	if n == 0 {
		return 0, io.EOF
	}
	for i := range p[:n] {
		p[i] = r.c
	}
	r.n -= int64(n)
	return n, nil
}

// TestHeaderBound feeds headers of 4 GiB and looks at how much of them is read.
func TestHeaderBound(t *testing.T) {
	for name, c := range map[string]byte{"one line": 'x', "blanks": ' '} {
		in := &repeat{c, 4 << 30}
		_, err := readMessage(io.MultiReader(strings.NewReader("Subject: "), in), true, newScratch)
		if status(err) != exitData || err.Error() != "the header is longer than 16 MiB" {
			t.Errorf("%s: %v", name, err)
		}
		if read := 4<<30 - in.n; read > maxHeader+1<<20 {
			t.Errorf("%s: %d octets read", name, read)
		}
	}
	long := "Subject: " + strings.Repeat("x", 1<<20) + "\n"
	if header, _ := readString(t, long+"\nx\n", true); header != long {
		t.Errorf("a line of 1 MiB: %d octets in the header", len(header))
	}
	// A first line without a colon where a name could end is text, however long.
	m, err := readMessage(&repeat{'x', 3 << 20}, true, newScratch)
	if err != nil || len(m.header) != 0 {
		t.Errorf("a long word: %d octets in the header, %v", len(m.header), err)
	}
}

// countingFile is a Scratch that counts.
type countingFile struct {
	memoryFile
	largest int
	closed  bool
}

func (f *countingFile) Write(p []byte) (int, error) {
	f.largest = max(f.largest, len(p))
	return f.memoryFile.Write(p)
}

func (f *countingFile) Close() error {
	f.closed = true
	return nil
}

// TestSpill: a long body goes to a scratch file and comes back as it was.
func TestSpill(t *testing.T) {
	for _, size := range []int{maxMemory - 1, maxMemory, maxMemory + 1, maxMemory + spillSize, 5<<20 + 1} {
		line := "0123456789 some text\r\n"
		body := strings.Repeat(line, size/len(line)+1)[:size]
		file := &countingFile{}
		files := 0
		m, err := readMessage(strings.NewReader("To: a\n\n"+body), true, func() (Scratch, error) {
			files++
			return file, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if want := size > maxMemory; want != (files == 1) || files > 1 {
			t.Errorf("%d octets: %d files", size, files)
		}
		if file.largest > maxMemory+64<<10 {
			t.Errorf("%d octets: %d in one write", size, file.largest)
		}
		if _, got := split(t, m); got != body {
			t.Errorf("%d octets: not what went in", size)
		}
		if files == 1 && !file.closed {
			t.Errorf("%d octets: the file is open", size)
		}

		crlf := strings.ReplaceAll(body, "\r\n", "\n")
		m, err = readMessage(strings.NewReader("To: a\r\n\r\n"+body), true, newScratch)
		if err != nil {
			t.Fatal(err)
		}
		if _, got := split(t, m); got != crlf {
			t.Errorf("%d octets with CRLF: not what went in", size)
		}
	}
}

func TestScratchTrouble(t *testing.T) {
	full := errors.New("no space left on device")
	_, err := readMessage(&repeat{'\n', 3 << 20}, true, func() (Scratch, error) { return nil, full })
	if !errors.Is(err, full) || status(err) != exitTempFail {
		t.Errorf("no file: %v", err)
	}
	file := &fullFile{err: full}
	_, err = readMessage(&repeat{'\n', 3 << 20}, true, func() (Scratch, error) { return file, nil })
	if !errors.Is(err, full) || status(err) != exitTempFail {
		t.Errorf("no space: %v", err)
	}
	if !file.closed {
		t.Error("no space: the file is open")
	}
}

type fullFile struct {
	countingFile
	err error
}

func (f *fullFile) Write([]byte) (int, error) { return 0, f.err }

func TestReadTrouble(t *testing.T) {
	broken := errors.New("input/output error")
	for _, in := range []string{"", "To: a", "To: a\n\nbody", "text"} {
		_, err := readMessage(io.MultiReader(strings.NewReader(in), iotest.ErrReader(broken)), true, newScratch)
		if !errors.Is(err, broken) || status(err) != exitTempFail {
			t.Errorf("after %q: %v", in, err)
		}
	}
}

func TestEightBit(t *testing.T) {
	for in, want := range map[string]bool{"\nabc\n": false, "\nabc\x80": true, "To: \x80\n\nabc": false, "\n" + strings.Repeat("x", 3<<20) + "\xff": true} {
		m, err := readMessage(strings.NewReader(in), true, newScratch)
		if err != nil {
			t.Fatal(err)
		}
		if m.body.eightBit != want {
			t.Errorf("%.20q: eightBit is %v", in, m.body.eightBit)
		}
		m.close()
	}
}

// TestBodyProperty: whatever the body, it comes out as it went in; with CRLF
// throughout it comes out with LF.
func TestBodyProperty(t *testing.T) {
	piece := rapid.SampledFrom([]string{"\n", "\r", "\r\n", ".", "x", "From ", " ", "\x00", "\xff", "To: a", strings.Repeat("y", 5000)})
	rapid.Check(t, func(t *rapid.T) {
		body := strings.Join(rapid.SliceOfN(piece, 0, 40).Draw(t, "pieces"), "")
		m, err := readMessage(strings.NewReader("To: a\n\n"+body), false, newScratch)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := m.writeBody(&b); err != nil {
			t.Fatal(err)
		}
		if b.String() != body {
			t.Fatalf("LF header: got %q", b.String())
		}

		lines := strings.ReplaceAll(strings.ReplaceAll(body, "\r\n", "\n"), "\n", "\r\n")
		m, err = readMessage(iotest.HalfReader(strings.NewReader("To: a\r\n\r\n"+lines)), false, newScratch)
		if err != nil {
			t.Fatal(err)
		}
		b.Reset()
		if err := m.writeBody(&b); err != nil {
			t.Fatal(err)
		}
		if want := strings.ReplaceAll(lines, "\r\n", "\n"); b.String() != want {
			t.Fatalf("CRLF throughout: got %q, want %q", b.String(), want)
		}
	})
}

// FuzzInput: nothing is lost but what the package comment names.
func FuzzInput(f *testing.F) {
	for _, s := range []string{"", "To: a\n\nb\n", "text", "From x Thu Jan  1 00:00:00 1970\nTo: a\n\nb", "a: b\r\n\r\nc\r\n", "From a\nFrom b\n\n", "a: b\n.\n", "a: b\r\nc\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		header, body := readString(t, in, false)
		if header != "" && (header[len(header)-1] != '\n' || !isField([]byte(header))) {
			t.Fatalf("header %q", header)
		}
		var all []byte
		for _, field := range scanHeader([]byte(header)) {
			if field.name == "" {
				t.Fatalf("%q is no field", field.raw)
			}
			all = append(all, field.raw...)
		}
		if string(all) != header {
			t.Fatalf("fields %q of header %q", all, header)
		}
		// What came out is the end of what went in, line ends aside.
		strip := func(s string) string { return strings.NewReplacer("\r", "", "\n", "").Replace(s) }
		if rest, ok := strings.CutSuffix(strip(in), strip(header)+strip(body)); !ok {
			t.Fatalf("header %q, body %q", header, body)
		} else if rest != "" && !strings.HasPrefix(rest, "From ") && !strings.HasPrefix(rest, ">From ") {
			t.Fatalf("%q is lost", rest)
		}
		if m, _ := readMessage(strings.NewReader(in), false, newScratch); !m.lines.allCRLF() && !strings.HasSuffix(in, body) {
			t.Fatalf("body %q was changed", body)
		}
		// Read again, the message is the same, unless a line of it ends in one
		// more CR than its line end needs.
		again, againBody := readString(t, header+"\n"+body, false)
		if (again != header || againBody != body) && !strings.Contains(header+body, "\r\n") {
			t.Fatalf("again: header %q, body %q", again, againBody)
		}
	})
}
