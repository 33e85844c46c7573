package dsn

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
)

// hostile are values that try to leave their field, line or part.
var hostile = []string{
	"\n", "\r", "\r\n", "\x00", "\n\n", " \n \n",
	"a@b\nFinal-Recipient: rfc822; forged@x",
	"a@b\r\n\r\nAction: delivered\r\n",
	"a\n\nReporting-MTA: dns; forged",
	"smtp; 550 a\n\n--=_dma_0123456789abcdef0123456789abcdef--\n",
	"--=_dma_", "\n--", "\n.\n", "\x1b[2J\x1b]0;title\a", "\x7f\x80\x85\u2028\u202e\ufeff",
	"\xff\xfe", "ü@bücher.example", "rfc822;a+0Ab@c", "utf-8;\\x{0A}x@y", "utf-8;ü@x",
	" ", "   a   b   ", ";", "smtp;", "smtp;;;", "a;b", "(", "\"", "\\", "<>", "%s%d%n",
	"5.1.1\nX: y", "5.1", "5.1.1.1", "9.9.9", "-1.0.0",
	strings.Repeat("x", 10<<10),
	strings.Repeat("x ", 5<<10),
	strings.Repeat("ä", 5<<10),
	strings.Repeat("\n", 10<<10),
	strings.Repeat("\"", 899) + "ä",
}

func TestHostileValues(t *testing.T) {
	fields := map[string]func(*Report, string){
		"To":         func(r *Report, v string) { r.To = v },
		"EnvelopeID": func(r *Report, v string) { r.EnvelopeID = v },
		"Original":   func(r *Report, v string) { r.Recipients[0].Original = v },
		"Final":      func(r *Report, v string) { r.Recipients[0].Final = v },
		"Status":     func(r *Report, v string) { r.Recipients[0].Status = v },
		"RemoteMTA":  func(r *Report, v string) { r.Recipients[0].RemoteMTA = v },
		"Diagnostic": func(r *Report, v string) { r.Recipients[0].Diagnostic = v },
		"content": func(r *Report, v string) {
			r.Original, r.Size = strings.NewReader(v), int64(len(v))
		},
		"all": func(r *Report, v string) {
			r.To, r.EnvelopeID = v, v
			r.Recipients[0] = Recipient{v, v, v, v, v, attempt, until}
			r.Recipients = append(r.Recipients, r.Recipients[0])
			r.Original, r.Size = strings.NewReader(v), int64(len(v))
		},
	}
	for name, set := range fields {
		for _, v := range hostile {
			for kind := Failed; kind <= Expanded; kind++ {
				r := failed(letter)
				r.Kind = kind
				set(r, v)
				if r.To == "<>" {
					continue
				}
				p, err := parseReport(build(t, r))
				if err == nil {
					err = checkShape(r, p)
				}
				if err != nil {
					t.Errorf("%s %s = %.60q: %v", kind, name, v, err)
				}
			}
		}
	}
}

func FuzzReport(f *testing.F) {
	for i, v := range hostile {
		f.Add(uint8(i), v, v, v, v, v, v, v, []byte(letter+v))
	}
	f.Add(uint8(1), "alice@example.org", "id", "rfc822;b@c", "b@c", "5.1.1", "mx", "smtp; 550 no", []byte(letter))
	f.Fuzz(func(t *testing.T, kind uint8, to, envid, orig, final, status, mta, diag string, content []byte) {
		r := failed("")
		r.Kind = Kind(kind%5) + Failed
		r.Return = Return(kind % 3)
		r.Postmaster = kind&64 != 0
		r.SizeCap = int64(kind) * 8
		r.To, r.EnvelopeID = to, envid
		r.Recipients = []Recipient{{orig, final, status, mta, diag, attempt, until}, {Final: final, Diagnostic: diag}}
		r.Original, r.Size = bytes.NewReader(content), int64(len(content))
		var b bytes.Buffer
		if _, err := r.WriteTo(&b); err != nil {
			if to == "" || to == "<>" {
				return
			}
			t.Fatal(err)
		}
		p := mustParse(t, b.Bytes())
		if err := checkShape(r, p); err != nil {
			t.Fatalf("%v\n%s", err, b.Bytes())
		}
		last := p.parts[2]
		if !bytes.HasPrefix(content, []byte(decoded(t, last))) {
			t.Errorf("the enclosed part is not from the message: %q", last.body)
		}
	})
}

// TestDiagnostic has the exact results of cleaning and typing.
func TestDiagnostic(t *testing.T) {
	for in, want := range map[string]string{
		"smtp; 550 no":             "smtp; 550 no",
		"SMTP;550 no":              "smtp; 550 no",
		"550-a\r\n550 b; c":        "smtp; 550-a 550 b; c",
		"X-Unix; exit status 1":    "x-unix; exit status 1",
		"disk full; try later":     "x-unix; disk full; try later",
		"foo; bar":                 "x-unix; foo; bar",
		"smtp; 550 \x00\x1b[1mé":   "smtp; 550 [1m?",
		"no route":                 "x-unix; no route",
		"smtp;":                    "",
		"":                         "",
		"\n":                       "",
		"smtp; " + long(1000, "y"): "smtp; " + long(900, "y") + " " + long(100, "y"),
	} {
		r := failed(letter)
		r.Recipients[0].Diagnostic = in
		p := mustParse(t, build(t, r))
		if got := p.fields[1].Get("Diagnostic-Code"); got != want {
			t.Errorf("diagnostic %.60q: got %.60q, want %.60q", in, got, want)
		}
	}
}

func long(n int, s string) string { return strings.Repeat(s, n) }

func TestGlobalAddresses(t *testing.T) {
	r := failed(letter)
	r.Recipients[0].Final = "ü@example.net"
	r.Recipients[0].Original = "rfc822;u@example.net"
	r.Recipients = append(r.Recipients, Recipient{Final: "a\xff@example.net"})
	p := mustParse(t, build(t, r))
	if p.parts[1].mediaType != "message/global-delivery-status" || p.parts[1].encoding != "8bit" {
		t.Errorf("second part is %s, %s", p.parts[1].mediaType, p.parts[1].encoding)
	}
	for i, want := range []string{"utf-8; ü@example.net", "rfc822; a?@example.net"} {
		if got := p.fields[i+1].Get("Final-Recipient"); got != want {
			t.Errorf("Final-Recipient is %q, want %q", got, want)
		}
	}
	if m, err := r.Build(); err != nil || !m.UTF8 || !m.EightBit {
		t.Errorf("EightBit=%v UTF8=%v, %v", m.EightBit, m.UTF8, err)
	}
}

// TestStatusSuitsKind checks that a report never contradicts itself.
func TestStatusSuitsKind(t *testing.T) {
	for kind, want := range map[Kind]map[string]string{
		Failed:    {"5.1.1": "5.1.1", "4.4.1": "4.4.1", "2.0.0": "5.0.0", "": "5.0.0", "x": "5.0.0"},
		Delayed:   {"5.1.1": "4.0.0", "4.4.1": "4.4.1", "2.0.0": "4.0.0", "": "4.0.0"},
		Delivered: {"5.1.1": "2.0.0", "4.4.1": "2.0.0", "2.1.5": "2.1.5", "": "2.0.0"},
	} {
		for in, status := range want {
			r := failed(letter)
			r.Kind, r.Recipients[0].Status = kind, in
			if got := mustParse(t, build(t, r)).fields[1].Get("Status"); got != status {
				t.Errorf("%s with status %q: got %q, want %q", kind, in, got, status)
			}
		}
	}
}

func TestOptionalTimes(t *testing.T) {
	r := failed(letter)
	r.Recipients[0].WillRetryUntil = until // not for a failure
	r.Recipients[0].LastAttempt = time.Time{}
	r.Arrival = time.Time{}
	p := mustParse(t, build(t, r))
	for i, name := range []string{"Arrival-Date", "Will-Retry-Until", "Last-Attempt-Date"} {
		if v := p.fields[min(i, 1)].Get(name); v != "" {
			t.Errorf("%s is %q", name, v)
		}
	}
	r.Kind = Delayed
	p = mustParse(t, build(t, r))
	if got, want := p.fields[1].Get("Will-Retry-Until"), "Mon, 09 Mar 2026 05:06:07 +0000"; got != want {
		t.Errorf("Will-Retry-Until is %q, want %q", got, want)
	}
}

func ExampleNotify_Expand() {
	n, _ := ParseNotify("SUCCESS,FAILURE")
	child, keep, report := n.Expand(Alias)
	fmt.Println(child, keep, report)
	// Output: FAILURE true expanded
}
