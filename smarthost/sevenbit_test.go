package smarthost

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"net/netip"
	"net/textproto"
	"os"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"dma/internal/smtptest"
)

// converted returns what a peer without 8BITMIME gets, without dot-stuffing.
func converted(t interface{ Fatalf(string, ...any) }, in string) (string, error) {
	m := contentOf(in)
	var err error
	if m.edits, err = sevenBit(m); err != nil {
		return "", err
	}
	out := strings.TrimSuffix(onWire(t, m), ".\r\n")
	return strings.TrimPrefix(strings.ReplaceAll("\n"+out, "\n.", "\n"), "\n"), nil
}

// TestSevenBit runs testdata/sevenbit: pairs of messages, in the notation of
// txtar, with the octets above 0x7f as they are.
func TestSevenBit(t *testing.T) {
	data, err := os.ReadFile("testdata/sevenbit/cases")
	if err != nil {
		t.Fatal(err)
	}
	cases := strings.Split("\n"+string(data), "\n== ")[1:]
	if len(cases) < 15 {
		t.Fatalf("%d cases", len(cases))
	}
	for _, c := range cases {
		name, rest, _ := strings.Cut(c, "\n")
		in, want, ok := strings.Cut(rest, "\n=>\n")
		if !ok {
			t.Fatalf("%s: no result", name)
		}
		out, err := converted(t, in+"\n")
		got := strings.ReplaceAll(out, "\r\n", "\n")
		if err != nil {
			got = err.Error() + "\n"
		}
		if want = strings.TrimRight(want, "\n") + "\n"; got != want {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
		}
	}
}

func TestSevenBitUnusual(t *testing.T) {
	deep := "MIME-Version: 1.0\n"
	for i := range 60 {
		deep += fmt.Sprintf("Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n", i, i)
	}
	long := "Content-Type: text/plain\n\n" + strings.Repeat("\u00e9 ", 40000)
	many := "Content-Type: multipart/mixed; boundary=b\n\n" + strings.Repeat("--b\n\n\xff\n", 11000)
	for _, c := range []struct {
		name, in string
		bad      bool
	}{
		{"nested too deep", deep + "\n\xff\n", true},
		{"nested too deep, but 7-bit", deep + "\nx\n", false},
		{"too many parts", many, true},
		{"a long line", long, false},
		{"no final line end", "\n\xff", false},
		{"only a header", "A: \xff\n", false},
		{"empty", "", false},
		{"a huge field", "Content-Type: multipart/mixed;\n" + strings.Repeat(" x=y;\n", 10000) + " boundary=b\n\n--b\n\n\xff\n", true},
		{"a boundary at the end of a piece", "Content-Type: multipart/mixed; boundary=b\n\n--b\n\n\xff" + strings.Repeat("x", 40000) + "\r\n--b--\r\n", false},
	} {
		out, err := converted(t, c.in)
		if errors.Is(err, errConversion) != c.bad || err != nil && !c.bad {
			t.Errorf("%s: %v", c.name, err)
		}
		if _, body, _ := strings.Cut(out, "\r\n\r\n"); !isASCII(body) {
			t.Errorf("%s: %.200q", c.name, body)
		}
	}
	if edits, err := sevenBit(contentOf(many[:len(many)/2])); err != nil || len(edits) == 0 {
		t.Errorf("%d edits, %v", len(edits), err)
	}
	short := contentOf("abc")
	short.Size = 4
	for _, m := range []*Message{short, {Content: brokenReader{}, Size: 100}} {
		if _, err := sevenBit(m); !errors.Is(err, errContent) {
			t.Error(err)
		}
	}
	// A message that has become shorter since is no whole one.
	m := contentOf("\n\xff\nabc\n")
	edits, err := sevenBit(m)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{2, 4, 5} {
		m := &Message{Content: strings.NewReader("\n\xff\nabc\n"[:size]), Size: m.Size, edits: edits}
		if err := writeContent(m, func([]byte, bool) error { return nil }); !errors.Is(err, errContent) {
			t.Errorf("%d octets: %v", size, err)
		}
	}
}

// leaves returns the decoded bodies of a message, found and decoded by the
// standard library.
func leaves(header textproto.MIMEHeader, body io.Reader) ([]string, error) {
	media, params, err := mime.ParseMediaType(header.Get("Content-Type"))
	if err != nil {
		media = "text/plain"
	}
	switch {
	case strings.HasPrefix(media, "multipart/"):
		var all []string
		r := multipart.NewReader(body, params["boundary"])
		for {
			p, err := r.NextRawPart()
			if err == io.EOF {
				return all, nil
			}
			if err != nil {
				return nil, err
			}
			more, err := leaves(p.Header, p)
			if err != nil {
				return nil, err
			}
			all = append(all, more...)
		}
	case media == "message/rfc822":
		m, err := mail.ReadMessage(body)
		if err != nil {
			return nil, err
		}
		return leaves(textproto.MIMEHeader(m.Header), m.Body)
	}
	switch header.Get("Content-Transfer-Encoding") {
	case "quoted-printable":
		body = quotedprintable.NewReader(body)
	case "base64":
		body = base64.NewDecoder(base64.StdEncoding, body)
	}
	data, err := io.ReadAll(body)
	return []string{media + " " + string(data)}, err
}

func leavesOf(t *rapid.T, message string) []string {
	m, err := mail.ReadMessage(strings.NewReader(message))
	if err != nil {
		t.Fatalf("%v: %q", err, message)
	}
	list, err := leaves(textproto.MIMEHeader(m.Header), m.Body)
	if err != nil {
		t.Fatalf("%v: %q", err, message)
	}
	return list
}

// drawPart draws a header and body of MIME.
func drawPart(t *rapid.T, depth int, top bool) string {
	header := ""
	if top {
		header = "Subject: x\nMIME-Version: 1.0\n"
	}
	kind := rapid.IntRange(0, 5).Draw(t, "kind")
	if depth == 0 {
		kind %= 3
	}
	switch kind {
	case 3, 4:
		b := rapid.SampledFrom([]string{"b", "bb", "b-", "a b", strings.Repeat("x", 70)}).Draw(t, "boundary") + fmt.Sprint(depth)
		out := header + "Content-Type: multipart/mixed; boundary=\"" + b + "\"\n" +
			rapid.SampledFrom([]string{"", "Content-Transfer-Encoding: 8bit\n"}).Draw(t, "transfer") +
			"\npreamble\n"
		for range rapid.IntRange(1, 3).Draw(t, "parts") {
			out += "--" + b + "\n" + drawPart(t, depth-1, false) + "\n"
		}
		return out + "--" + b + "--\nepilogue\n"
	case 5:
		return header + "Content-Type: message/rfc822\n\n" + drawPart(t, depth-1, true)
	}
	header += rapid.SampledFrom([]string{
		"", "Content-Type: text/plain; charset=utf-8\n", "Content-Type: application/octet-stream\nContent-Transfer-Encoding: 8bit\n",
		"Content-Type: image/x; name=\"a;b=c\"\n", "Content-Transfer-Encoding: 8BIT (raw)\n", "Content-Type: text/html\ncontent-transfer-encoding :\n 8bit\nX: y\n",
	}).Draw(t, "header")
	body := ""
	for range rapid.IntRange(0, 8).Draw(t, "pieces") {
		piece := rapid.SampledFrom([]string{"\n", "a", "\u00e9", "\xff", " ", "\t", "=", ".", "-", "--", "--b", "=3D", "From "}).Draw(t, "piece")
		body += strings.Repeat(piece, rapid.SampledFrom([]int{1, 1, 2, 19, 57, 75, 76}).Draw(t, "times"))
		if len(body)-strings.LastIndexByte(body, '\n') > 600 {
			body += "\n" // what is not encoded has its long lines broken
		}
	}
	if !top {
		body = strings.TrimRight(body, "\n") // the reader of the standard library takes an empty line before a delimiter away
	}
	return header + "\n" + body
}

// TestSevenBitRoundTrip: what is decoded at the other side is what the message
// says, whatever its structure, and every line is short.
func TestSevenBitRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawPart(t, 3, true) + "\n"
		if rapid.Bool().Draw(t, "crlf") {
			in = strings.ReplaceAll(in, "\n", "\r\n")
		}
		out, err := converted(t, in)
		if err != nil {
			t.Fatalf("%v: %q", err, in)
		}
		if !isASCII(out) {
			t.Fatalf("%q became %q", in, out)
		}
		want := leavesOf(t, strings.ReplaceAll(strings.ReplaceAll(in, "\r\n", "\n"), "\n", "\r\n"))
		got := leavesOf(t, out)
		if len(got) != len(want) {
			t.Fatalf("%d parts became %d\n%q\n%q", len(want), len(got), in, out)
		}
		for i := range want {
			// A body at the end of base64 has the line end of the whole after it.
			if strings.TrimSuffix(got[i], "\r\n") != strings.TrimSuffix(want[i], "\r\n") {
				t.Fatalf("part %d: %q\nbecame %q\nin %q", i, want[i], got[i], out)
			}
		}
		m := contentOf(in)
		m.edits, _ = sevenBit(m)
		m.Content = dull{m.Content}
		if again := onWire(t, m); len(in) < 3000 && strings.ReplaceAll("\n"+again, "\n.", "\n") != "\n"+out+"\r\n" {
			t.Fatalf("it depends on how it is read: %q, %q", again, out)
		}
	})
}

func TestEncoders(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := rapid.SliceOf(rapid.SampledFrom([]byte("\r\r\n\n \t=-.aZ\x00\x7f\x80\xff"))).Draw(t, "in")
		read := func(e encoding) []byte {
			r := &editReader{src: bytes.NewReader(in), size: int64(len(in)), edits: []edit{{to: int64(len(in)), encoding: e}}}
			out, err := io.ReadAll(dullReader{r})
			if err != nil {
				t.Fatal(err)
			}
			for line := range bytes.Lines(out) {
				if len(bytes.TrimSuffix(line, []byte("\n"))) > 76 || bytes.HasPrefix(line, []byte("-")) || bytes.HasSuffix(line, []byte(" \n")) {
					t.Fatalf("%v: line %q", e, line)
				}
			}
			return out
		}
		lf := bytes.ReplaceAll(in, []byte("\r\n"), []byte("\n"))
		if got, err := io.ReadAll(quotedprintable.NewReader(bytes.NewReader(read(quotedPrintable)))); err != nil || !bytes.Equal(got, lf) {
			t.Fatalf("quoted-printable: %q, %v", got, err)
		}
		decode := func(e encoding) []byte {
			got, err := io.ReadAll(base64.NewDecoder(base64.StdEncoding, bytes.NewReader(read(e))))
			if err != nil {
				t.Fatal(err)
			}
			return got
		}
		if got := decode(base64Binary); !bytes.Equal(got, in) {
			t.Fatalf("base64: %q", got)
		}
		if got := decode(base64Text); !bytes.Equal(got, bytes.ReplaceAll(lf, []byte("\n"), []byte("\r\n"))) {
			t.Fatalf("base64 of text: %q", got)
		}
	})
}

// dullReader reads an octet at a time.
type dullReader struct{ io.Reader }

func (d dullReader) Read(p []byte) (int, error) { return d.Reader.Read(p[:min(len(p), 1)]) }

func FuzzSevenBit(f *testing.F) {
	f.Add([]byte("Content-Type: multipart/mixed; boundary=b\n\n--b\n\n\xff\n--b--\n"))
	f.Add([]byte("Content-Type: message/rfc822\nContent-Transfer-Encoding: 8bit\n\nA: b\n\n\xff"))
	f.Add([]byte("\n\xff\r"))
	f.Add([]byte("Content-Type: text/plain; x=\"(\n\n\xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		m := contentOf(string(in))
		edits, err := sevenBit(m)
		if err != nil {
			if !errors.Is(err, errConversion) {
				t.Fatal(err)
			}
			return
		}
		pos := int64(0)
		for _, e := range edits {
			if e.from < pos || e.to < e.from || e.to > m.Size {
				t.Fatalf("edits %+v of %d octets", edits, m.Size)
			}
			pos = e.to
		}
		m.edits = edits
		onWire(t, m)
	})
}

func FuzzMediaType(f *testing.F) {
	for _, s := range []string{"text/plain", "multipart/mixed; boundary=\"a b\"", "multipart/mixed;boundary=a=b", "a/b(c;boundary=x);\r\n boundary=\"\\\"\""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		media, boundary := mediaType(s)
		if len(boundary) > maxBoundary || strings.ContainsAny(boundary, "\r\n") || strings.ContainsAny(media, " \t\r\n;") {
			t.Fatalf("%q: %q, %q", s, media, boundary)
		}
	})
}

func TestMediaType(t *testing.T) {
	for _, c := range []struct{ in, media, boundary string }{
		{" Text/Plain; charset=utf-8", "text/plain", ""},
		{" multipart/mixed; boundary=abc", "multipart/mixed", "abc"},
		{" multipart/mixed;\n\tcharset=x; BOUNDARY=\"a b;c\"", "multipart/mixed", "a b;c"},
		{"multipart/mixed; boundary=----=_Part_1", "multipart/mixed", "----=_Part_1"},
		{"multipart/mixed (what); boundary (x) = abc (y)", "multipart/mixed", "abc"},
		{"multipart/mixed; name=\"boundary=x\"; boundary=y", "multipart/mixed", "y"},
		{"multipart/mixed; flag; boundary=y", "multipart/mixed", "y"},
		{"multipart/mixed; boundary=\"a\\\"b\"", "multipart/mixed", "a\"b"},
		{"multipart/mixed; boundary=\"\"", "multipart/mixed", ""},
		{"", "", ""},
	} {
		if media, boundary := mediaType(c.in); media != c.media || boundary != c.boundary {
			t.Errorf("%q: %q, %q", c.in, media, boundary)
		}
	}
}

// TestWithout8BITMIME: a peer that does not offer 8BITMIME gets 7-bit text, with
// its own size; one that does gets what there is.
func TestWithout8BITMIME(t *testing.T) {
	for _, c := range []struct{ hello, content, want, body string }{
		{"SIZE", "Subject: x\n\n\u00e9\n", "a@x sent 2.0.0 end-of-data 250", "=C3=A9"},
		{"8BITMIME", "Subject: x\n\n\u00e9\n", "a@x sent 2.0.0 end-of-data 250", "\u00e9"},
		{"SIZE", "Subject: \u00e9\n\nx\n", "a@x sent 2.0.0 end-of-data 250", "x"},
		{"SIZE", "Content-Type: multipart/signed; boundary=b\n\n--b\n\n\u00e9\n--b--\n", "a@x permfail 5.6.3 MAIL -", ""},
	} {
		script := "hello PIPELINING," + c.hello + "\n"
		if c.body != "" {
			script += takes
		}
		parsed, err := smtptest.ParseScript(script)
		if err != nil {
			t.Fatal(err)
		}
		client, server := tcpPair(t)
		var heard bytes.Buffer
		served := make(chan error, 1)
		go func() { served <- parsed.Serve(t.Context(), &tapConn{server, &heard}) }()
		s, err := NewSession(t.Context(), Config{}, client, Host{Name: "test", Port: 25}, netip.MustParseAddr("192.0.2.1"))
		if err != nil {
			t.Fatal(err)
		}
		m := contentOf(c.content)
		m.Sender, m.Recipients = "s@x", []Recipient{{Address: "a@x"}}
		out := s.Send(t.Context(), *m)
		if got := describe("a@x", &out[0]); got != c.want {
			t.Errorf("%q: %s, %s", c.content, got, out[0].Text())
		}
		s.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if c.body == "" {
			continue
		}
		if !strings.Contains(heard.String(), "\r\n"+c.body+"\r\n.\r\n") {
			t.Errorf("%q: the peer got %q", c.content, heard.String())
		}
		_, text, _ := strings.Cut(heard.String(), "DATA\r\n")
		text, _, _ = strings.Cut(text, ".\r\n")
		if c.hello == "SIZE" && !strings.Contains(heard.String(), fmt.Sprintf(" SIZE=%d\r\n", len(text))) {
			t.Errorf("%q: %d octets, the peer got %q", c.content, len(text), heard.String())
		}
	}
}

// tapConn notes what is read from it.
type tapConn struct {
	net.Conn
	heard *bytes.Buffer
}

func (c *tapConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.heard.Write(p[:n])
	return n, err
}
