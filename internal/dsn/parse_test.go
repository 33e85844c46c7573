package dsn

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"net/textproto"
	"strings"
	"testing"
	"unicode/utf8"
)

// parsed is a report as a reader of mail sees it, taken apart by the standard
// library and by nothing of this package.
type parsed struct {
	header mail.Header
	parts  []parsedPart
	fields []textproto.MIMEHeader // per-message group, then one group per recipient
}

type parsedPart struct {
	mediaType string
	encoding  string
	body      []byte
}

// mustParse fails the test unless data is a well-formed report.
func mustParse(t *testing.T, data []byte) parsed {
	t.Helper()
	p, err := parseReport(data)
	if err != nil {
		t.Fatalf("%v\n%s", err, data)
	}
	return p
}

func parseReport(data []byte) (parsed, error) {
	var p parsed
	for line := range bytes.Lines(data) {
		if len(line) > 999 || line[len(line)-1] != '\n' {
			return p, fmt.Errorf("line of %d bytes or without end: %.60q", len(line), line)
		}
	}
	if i := bytes.IndexAny(data, "\x00\r"); i >= 0 {
		return p, fmt.Errorf("byte %#x at %d", data[i], i)
	}
	head, _, _ := bytes.Cut(data, []byte("\n\n"))
	for line := range strings.SplitSeq(string(head), "\n") {
		if strings.TrimSpace(line) == "" {
			return p, fmt.Errorf("blank line in the header")
		}
	}

	m, err := mail.ReadMessage(bytes.NewReader(data))
	if err != nil {
		return p, fmt.Errorf("header: %w", err)
	}
	p.header = m.Header
	mediaType, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || mediaType != "multipart/report" {
		return p, fmt.Errorf("media type %q, %v", mediaType, err)
	}
	if n := len(params["boundary"]); n == 0 || n > 70 {
		return p, fmt.Errorf("boundary of %d characters", n)
	}
	eightBit := false
	mr := multipart.NewReader(m.Body, params["boundary"])
	for {
		raw, err := mr.NextRawPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			return p, fmt.Errorf("part %d: %w", len(p.parts)+1, err)
		}
		if len(raw.Header) != 3 {
			return p, fmt.Errorf("part %d has header %v", len(p.parts)+1, raw.Header)
		}
		body, err := io.ReadAll(raw)
		if err != nil {
			return p, err
		}
		part := parsedPart{raw.Header.Get("Content-Type"), raw.Header.Get("Content-Transfer-Encoding"), body}
		ascii := true
		for _, c := range body {
			ascii = ascii && c < 0x80
		}
		if part.encoding == "7bit" != ascii && part.encoding != "quoted-printable" || part.encoding == "quoted-printable" && !ascii {
			return p, fmt.Errorf("part %d is declared %s, ascii=%v", len(p.parts)+1, part.encoding, ascii)
		}
		eightBit = eightBit || !ascii
		p.parts = append(p.parts, part)
	}
	if outer := m.Header.Get("Content-Transfer-Encoding"); (outer == "8bit") != eightBit || (outer == "7bit") == eightBit {
		return p, fmt.Errorf("report is declared %s, 8-bit=%v", outer, eightBit)
	}
	if len(p.parts) < 2 {
		return p, fmt.Errorf("%d parts", len(p.parts))
	}
	if !utf8.Valid(p.parts[0].body) || !utf8.Valid(p.parts[1].body) {
		return p, fmt.Errorf("a generated part is not UTF-8")
	}
	status := p.parts[1]
	if status.mediaType != "message/"+params["report-type"] {
		return p, fmt.Errorf("report-type %q with a part of type %q", params["report-type"], status.mediaType)
	}
	for group := range strings.SplitSeq(strings.TrimSuffix(string(status.body), "\n"), "\n\n") {
		for line := range strings.SplitSeq(group, "\n") {
			if strings.TrimSpace(line) == "" {
				return p, fmt.Errorf("blank line in a group of fields:\n%q", group)
			}
		}
		h, err := textproto.NewReader(bufio.NewReader(strings.NewReader(group + "\n\n"))).ReadMIMEHeader()
		if err != nil {
			return p, fmt.Errorf("fields %q: %w", group, err)
		}
		for name, values := range h {
			if len(values) != 1 {
				return p, fmt.Errorf("field %s occurs %d times", name, len(values))
			}
		}
		p.fields = append(p.fields, h)
	}
	return p, nil
}

// checkShape verifies what must hold for the report of r whatever its values are.
func checkShape(r *Report, p parsed) error {
	for name, values := range p.header {
		if len(values) != 1 {
			return fmt.Errorf("header field %s occurs %d times", name, len(values))
		}
	}
	want := []string{"From", "To", "Subject", "Date", "Message-Id", "Auto-Submitted", "Mime-Version", "Content-Type", "Content-Transfer-Encoding"}
	if len(p.header) != len(want) {
		return fmt.Errorf("header %v", p.header)
	}
	for _, name := range want {
		if p.header[name] == nil {
			return fmt.Errorf("no header field %s", name)
		}
	}
	nparts := 3
	if r.Original == nil {
		nparts = 2
	}
	if len(p.parts) != nparts || len(p.fields) != 1+len(r.Recipients) {
		return fmt.Errorf("%d parts and %d groups of fields", len(p.parts), len(p.fields))
	}
	allowed := map[string]bool{"Original-Envelope-Id": true, "Reporting-Mta": true, "Arrival-Date": true}
	for i, group := range p.fields {
		if i == 1 {
			allowed = map[string]bool{"Original-Recipient": true, "Final-Recipient": true, "Action": true, "Status": true,
				"Remote-Mta": true, "Diagnostic-Code": true, "Last-Attempt-Date": true, "Will-Retry-Until": true}
		}
		for name := range group {
			if !allowed[name] {
				return fmt.Errorf("group %d has field %q", i, name)
			}
		}
		if i > 0 && (group.Get("Action") != r.Kind.String() || !ValidStatus(group.Get("Status")) || group["Final-Recipient"] == nil) {
			return fmt.Errorf("group %d is %v", i, group)
		}
	}
	if p.fields[0].Get("Reporting-Mta") != "dns; "+r.ReportingMTA {
		return fmt.Errorf("per-message fields are %v", p.fields[0])
	}
	return nil
}
