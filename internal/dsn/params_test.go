package dsn

import (
	"strings"
	"testing"
)

func TestParseNotify(t *testing.T) {
	for in, want := range map[string]Notify{
		"NEVER":                 Never,
		"never":                 Never,
		"SUCCESS":               Success,
		"FAILURE,DELAY":         Failure | Delay,
		"Delay,success,Failure": Success | Failure | Delay,
		"FAILURE,FAILURE":       Failure,
	} {
		got, err := ParseNotify(in)
		if err != nil || got != want {
			t.Errorf("ParseNotify(%q) = %v, %v", in, got, err)
		}
		if again, err := ParseNotify(got.String()); err != nil || again != got {
			t.Errorf("%q does not read back: %v, %v", got, again, err)
		}
	}
	for _, in := range []string{"", ",", "NEVER,SUCCESS", "FAILURE,", "FAILURE, DELAY", "FAIL", "FAILURE\n", strings.Repeat("DELAY,", 50)} {
		if got, err := ParseNotify(in); err == nil {
			t.Errorf("ParseNotify(%q) = %v, want an error", in, got)
		}
	}
}

func TestWants(t *testing.T) {
	for n, want := range map[Notify]string{
		0:                         "failed delayed",
		Never:                     "",
		Failure:                   "failed",
		Delay:                     "delayed",
		Success:                   "delivered relayed expanded",
		Success | Failure | Delay: "failed delayed delivered relayed expanded",
	} {
		var got []string
		for k := Kind(0); k <= Expanded+1; k++ {
			if n.Wants(k) {
				got = append(got, k.String())
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("NOTIFY=%s wants %v, want %v", n, got, want)
		}
	}
}

func TestExpand(t *testing.T) {
	cases := []struct {
		n      Notify
		how    Expansion
		child  Notify
		keep   bool
		report Kind
	}{
		{0, Forward, 0, true, 0},
		{Success | Failure, Forward, Success | Failure, true, 0},
		{Never, Forward, Never, true, 0},
		{0, Alias, 0, true, 0},
		{Never, Alias, Never, true, 0},
		{Failure | Delay, Alias, Failure | Delay, true, 0},
		{Success | Failure, Alias, Failure, true, Expanded},
		{Success, Alias, Never, true, Expanded},
		{0, List, 0, false, 0},
		{Never, List, 0, false, 0},
		{Success | Failure, List, 0, false, Delivered},
	}
	for _, c := range cases {
		child, keep, report := c.n.Expand(c.how)
		if child != c.child || keep != c.keep || report != c.report {
			t.Errorf("NOTIFY=%s, case %d: got %q %v %s", c.n, c.how, child, keep, report)
		}
	}
}

func TestXtext(t *testing.T) {
	for plain, enc := range map[string]string{
		"":              "",
		"a+b=c":         "a+2Bb+3Dc",
		"a b\n\x00\xff": "a+20b+0A+00+FF",
		"~!":            "~!",
	} {
		if got := EncodeXtext(plain); got != enc {
			t.Errorf("EncodeXtext(%q) = %q, want %q", plain, got, enc)
		}
		if got, err := DecodeXtext(enc); err != nil || got != plain {
			t.Errorf("DecodeXtext(%q) = %q, %v", enc, got, err)
		}
	}
	for _, in := range []string{"+", "+2", "+2b", "+GG", "a=b", "a b", "\x7f", "ä", "\n", "+ 2B"} {
		if got, err := DecodeXtext(in); err == nil {
			t.Errorf("DecodeXtext(%q) = %q, want an error", in, got)
		}
	}
}

func FuzzXtext(f *testing.F) {
	for _, s := range append(hostile, "+2B", "+2b") {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got, err := DecodeXtext(EncodeXtext(s)); err != nil || got != s {
			t.Errorf("%q becomes %q, %v", s, got, err)
		}
		if dec, err := DecodeXtext(s); err == nil {
			if again, err := DecodeXtext(EncodeXtext(dec)); err != nil || again != dec {
				t.Errorf("%q decodes to %q, which becomes %q, %v", s, dec, again, err)
			}
		}
	})
}

func TestParseORCPT(t *testing.T) {
	for in, want := range map[string]ORCPT{
		"rfc822;x@y":          {"rfc822", "x@y"},
		"RFC822;a+2Bb@y":      {"rfc822", "a+b@y"},
		"rfc822;+22a+20b+22@": {"rfc822", `"a b"@`},
		"x400;C+3DUS;A+3Dx":   {"x400", "C=US;A=x"},
		`utf-8;\x{FC}@x`:      {"utf-8", "ü@x"},
		`utf-8;a\x{2B}b@x`:    {"utf-8", "a+b@x"},
		"UTF-8;ü@x":           {"utf-8", "ü@x"},
	} {
		got, err := ParseORCPT(in)
		if err != nil || got != want {
			t.Errorf("ParseORCPT(%q) = %v, %v", in, got, err)
		}
		if again, err := ParseORCPT(got.String()); err != nil || again != got {
			t.Errorf("%q does not read back: %v, %v", got.String(), again, err)
		}
	}
	for _, in := range []string{"", "rfc822", "rfc822;", ";x@y", "r c;x@y", "rfc822;a b", "rfc822;a+0Ab", "rfc822;a+FF",
		"rfc822;ü@x", `utf-8;\x{0A}`, `utf-8;\x{D800}`, `utf-8;\x{110000}`, `utf-8;\x{1}`, `utf-8;\x41`, `utf-8;\`, "utf-8;\xff",
		"utf-8;a+b@x", "rfc822;" + strings.Repeat("a", 500)} {
		if got, err := ParseORCPT(in); err == nil {
			t.Errorf("ParseORCPT(%q) = %v, want an error", in, got)
		}
	}
}

func FuzzParseORCPT(f *testing.F) {
	for _, s := range hostile {
		f.Add(s)
		f.Add("rfc822;" + s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		o, err := ParseORCPT(s)
		if err != nil {
			return
		}
		if strings.ContainsAny(o.Address, "\r\n\x00") {
			t.Errorf("%q holds control characters", o.Address)
		}
		out := o.String()
		if !isASCII(out) {
			t.Errorf("%q is not ASCII", out)
		}
		// Encoding can make a value longer than its limit.
		if again, err := ParseORCPT(out); len(out) <= maxORCPT && (err != nil || again != o) {
			t.Errorf("%q reads back as %v, %v", out, again, err)
		}
	})
}

func TestENVID(t *testing.T) {
	if got, err := ParseENVID("QQ+2B1+20a"); err != nil || got != "QQ+1 a" {
		t.Errorf("got %q, %v", got, err)
	}
	for _, in := range []string{"", "a b", "a+0A", "a+FF", strings.Repeat("a", 101), strings.Repeat("+41", 34)} {
		if got, err := ParseENVID(in); err == nil {
			t.Errorf("ParseENVID(%q) = %q, want an error", in, got)
		}
	}
	if err := CheckENVID(strings.Repeat("a", 100)); err != nil {
		t.Error(err)
	}
	for _, in := range []string{"", "a\n", "ä", strings.Repeat("a", 101), strings.Repeat("+", 34)} {
		if CheckENVID(in) == nil {
			t.Errorf("CheckENVID(%q) found nothing", in)
		}
	}
}

func TestParseRet(t *testing.T) {
	for in, want := range map[string]Return{"FULL": ReturnFull, "hdrs": ReturnHeaders} {
		if got, err := ParseRet(in); err != nil || got != want || got.String() != strings.ToUpper(in) {
			t.Errorf("ParseRet(%q) = %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "FULL ", "HEADERS"} {
		if got, err := ParseRet(in); err == nil {
			t.Errorf("ParseRet(%q) = %v, want an error", in, got)
		}
	}
}

func TestStatus(t *testing.T) {
	for in, class := range map[string]int{"2.0.0": 2, "4.999.1": 4, "5.7.26": 5, "5.01.1": 0, "3.0.0": 0, "5.1": 0,
		"5.1.1.1": 0, "5.1.1000": 0, "": 0, "5..1": 0, " 5.1.1": 0, "5.1.1\n": 0, "5.-1.1": 0} {
		if got := StatusClass(in); got != class || ValidStatus(in) != (class != 0) {
			t.Errorf("%q: class %d, valid %v", in, got, ValidStatus(in))
		}
	}
	for in, want := range map[string]string{
		"5.1.1":  "there is no such mailbox",
		"4.1.1":  "there is no such mailbox",
		"5.1.99": "there is a problem with the recipient's address",
		"5.99.9": "the message could not be delivered",
		"4.0.0":  "the message could not be delivered for now",
		"2.1.5":  "the message was accepted",
		"junk":   "the message could not be delivered",
	} {
		if got := StatusText(in); got != want {
			t.Errorf("StatusText(%q) = %q, want %q", in, got, want)
		}
	}
}
