package config

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the problems that are found into testdata")

// TestProblems reads testdata/problems.txt: a line of a configuration file, and
// below it, indented by a tab, the problems with it.
func TestProblems(t *testing.T) {
	const name = "testdata/problems.txt"
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "\t") {
			continue
		}
		got.WriteString(line)
		_, problems := parse("/etc/dma/dma.conf", []byte(line))
		for _, p := range problems {
			if p.File != "/etc/dma/dma.conf" || p.Line != 1 {
				t.Errorf("%q: problem at %s:%d", line, p.File, p.Line)
			}
			got.WriteString("\t" + p.Text + "\n")
		}
	}
	if *update {
		if err := os.WriteFile(name, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want := strings.Split(string(data), "\n")
	for i, line := range strings.Split(got.String(), "\n") {
		if i >= len(want) || line != want[i] {
			t.Fatalf("line %d: got %q, want %q", i+1, line, want[min(i, len(want)-1)])
		}
	}
}

// TestCdma reads what an installation of C dma has.
func TestCdma(t *testing.T) {
	c, problems, err := Load("testdata/cdma.conf", true)
	if err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	want := Default()
	want.File, _ = filepath.Abs("testdata/cdma.conf")
	want.Smarthost = []string{"mail.example.com"}
	want.Port = 587
	want.AuthPath = "/etc/dma/auth.conf"
	want.SecureTransfer, want.StartTLS, want.OpportunisticTLS, want.FullBounce = true, true, true, true
	want.VerifyCert = Yes
	want.MailName = "/etc/mailname"
	want.Masquerade = "percolator@dfly.example"
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got %+v\nwant %+v", c, want)
	}
}

func TestValues(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "dma.conf")
	conf := "\ufeff# every key\r\n" +
		"SMARTHOST a, b:587 [192.0.2.1]\t[2001:db8::1]:465,mx:example.org ::1 fe80::1%eth0 # relays\r\n" +
		"  PORT   26  \r\n" +
		`ALIASES aliases, /etc/more-aliases
SPOOLDIR spool
SOCKET door.sock
AUTHPATH sub/auth#1.conf
CERTFILE /c.pem
SECURETRANSFER Yes
STARTTLS on
OPPORTUNISTIC_TLS true
VERIFYCERT no
FINGERPRINT AB:` + strings.Repeat("cd", 31) + `
INSECURE
DEFER
FULLBOUNCE	yes
MAILNAME Mail.example.org.
MASQUERADE joe@
NULLCLIENT off
MAILBOX pipe:/usr/bin/procmail -d "%u"
MBOXLOCK flock
FORWARD /var/forward/%u
LOCALDOMAINS A.example b.example
USERS users
RETRY_MIN 90s
RETRY_MAX 1d12h
EXPIRE 2d
DELAYNOTICE 0s
COMMANDTIME 1h30m5s
CONCURRENCY 3
MINUID 0
FORWARDUSERS www-data, list
ALIASUSER nobody
MINFREE 5%
PASSWORDCMD /usr/bin/token --for dma
TOKENUSER tok
TLSPOLICY tls
SENDERRELAY senders
REWRITE rewrite
METRICS /m.prom
RESOLVER 192.0.2.53, 192.0.2.54:5353 [2001:db8::53]:53 ::1
#PORT 27
 # PORT 28
PORT 465 # last, without a newline`
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	c, problems, err := Load(file, true)
	if err != nil {
		t.Fatal(err)
	}
	if len(problems) != 1 || problems[0].String() != file+":44: PORT is set on line 3 already; the last line counts, remove the other" {
		t.Errorf("problems %q", problems)
	}
	want := &Config{
		File:           file,
		Smarthost:      []string{"a", "b:587", "[192.0.2.1]", "[2001:db8::1]:465", "mx:example.org", "[::1]", "[fe80::1%eth0]"},
		Port:           465,
		Resolver:       []string{"192.0.2.53", "192.0.2.54:5353", "[2001:db8::53]:53", "[::1]"},
		Aliases:        []string{dir + "/aliases", "/etc/more-aliases"},
		SpoolDir:       dir + "/spool",
		Socket:         dir + "/door.sock",
		AuthPath:       dir + "/sub/auth#1.conf",
		CertFile:       "/c.pem",
		SecureTransfer: true, StartTLS: true, OpportunisticTLS: true,
		VerifyCert:  No,
		Fingerprint: "ab" + strings.Repeat("cd", 31),
		Insecure:    true, Defer: true, FullBounce: true,
		MailName:     "Mail.example.org",
		Masquerade:   "joe@",
		Mailbox:      `pipe:/usr/bin/procmail -d "%u"`,
		MboxLock:     "flock",
		Forward:      "/var/forward/%u",
		LocalDomains: []string{"a.example", "b.example"},
		Users:        dir + "/users",
		RetryMin:     90 * time.Second, RetryMax: 36 * time.Hour,
		Expire:      48 * time.Hour,
		CommandTime: 90*time.Minute + 5*time.Second,
		Concurrency: 3,
		AliasUser:   "nobody", ForwardUsers: []string{"www-data", "list"},
		MinFree:     Space{Percent: 5},
		PasswordCmd: "/usr/bin/token --for dma",
		TokenUser:   "tok",
		TLSPolicy:   dir + "/tls", SenderRelay: dir + "/senders", Rewrite: dir + "/rewrite",
		Metrics: "/m.prom",
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}

	// Every key was set to something that is not its default.
	d := keys(Default(), "")
	for i, k := range keys(c, "") {
		if k.get() == d[i].get() && k.name != "NULLCLIENT" {
			t.Errorf("the test does not set %s", k.name)
		}
	}
}

// TestSafeSide: a mistake in what protects does not take the protection away.
func TestSafeSide(t *testing.T) {
	for _, tt := range []struct {
		conf string
		want func(c *Config) bool
	}{
		{"FINGERPRINT 123", func(c *Config) bool { return c.Fingerprint == "" && c.VerifyCert == Yes }},
		{"FINGERPRINT\nVERIFYCERT no", func(c *Config) bool { return c.VerifyCert == Yes }},
		{"VERIFYCERT ?", func(c *Config) bool { return c.VerifyCert == Yes }},
		{"SECURETRANSFER ?\nSTARTTLS ?", func(c *Config) bool { return c.SecureTransfer && c.StartTLS }},
		{"OPPORTUNISTIC_TLS ?\nINSECURE ?", func(c *Config) bool { return !c.OpportunisticTLS && !c.Insecure }},
		{"SMARTHOST a@b", func(c *Config) bool { return c.SmarthostBad && c.Smarthost == nil }},
		{"SMARTHOST a@b\nSMARTHOST a", func(c *Config) bool { return !c.SmarthostBad && len(c.Smarthost) == 1 }},
		{"SMARTHOST a@b a", func(c *Config) bool { return !c.SmarthostBad && len(c.Smarthost) == 1 }},
		{"SMARTHOST", func(c *Config) bool { return !c.SmarthostBad && c.Smarthost == nil }},
		{"RETRY_MIN 1d", func(c *Config) bool { return c.RetryMin == day && c.RetryMax == day }},
	} {
		if c, _ := parse("/f", []byte(tt.conf)); !tt.want(c) {
			t.Errorf("%q gives %+v", tt.conf, c)
		}
	}
}

func TestLimits(t *testing.T) {
	many := strings.Repeat("NOKEY\n", 200)
	if _, problems := parse("/f", []byte(many)); len(problems) != maxProblems+1 || problems[maxProblems].String() != "/f: more problems than are shown here" {
		t.Errorf("%d problems, the last %v", len(problems), problems[len(problems)-1])
	}
	c, problems := parse("/f", []byte("PORT "+strings.Repeat(" ", maxLine)+"26\nCONCURRENCY 2"))
	if len(problems) != 1 || problems[0].String() != "/f:1: longer than 4096 octets; the line is ignored" || c.Port != 25 || c.Concurrency != 2 {
		t.Errorf("long line: %v", problems)
	}
	_, problems = parse("/f", bytes.Repeat([]byte("#\n"), maxFile/2+1))
	if len(problems) != 1 || problems[0].String() != "/f: longer than 1 MiB; what comes after that is not read" {
		t.Errorf("long file: %v", problems)
	}
}

func TestLoadErrors(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "no", "dma.conf")
	c, problems, err := Load(missing, false)
	if err != nil || problems != nil || !reflect.DeepEqual(c, Default()) {
		t.Errorf("missing default file: %v %v", problems, err)
	}
	for _, tt := range []struct {
		path  string
		named bool
		want  string
	}{
		{missing, true, "configuration: open " + missing + ": no such file or directory"},
		{dir, true, "configuration: read " + dir + ": not a regular file"},
		{dir, false, "configuration: read " + dir + ": not a regular file"},
		{"/dev/zero", true, "configuration: read /dev/zero: not a regular file"},
	} {
		c, _, err := Load(tt.path, tt.named)
		if err == nil || err.Error() != tt.want || !reflect.DeepEqual(c, Default()) {
			t.Errorf("Load(%s, %v): error %v; want %s", tt.path, tt.named, err, tt.want)
		}
	}
	if _, problems, err := Load(os.DevNull, true); err != nil || problems != nil {
		t.Errorf("%s: %v %v", os.DevNull, problems, err)
	}
}

func TestDuration(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want time.Duration
		out  string
	}{
		{"90s", 90 * time.Second, "1m30s"},
		{"5m", 5 * time.Minute, "5m"},
		{"1h30m", 90 * time.Minute, "1h30m"},
		{"5d", 120 * time.Hour, "5d"},
		{"1d2h3m4s", 26*time.Hour + 3*time.Minute + 4*time.Second, "1d2h3m4s"},
		{"0s", 0, "0s"},
		{"3650d", 3650 * day, "3650d"},
		{"", -1, ""}, {"5", -1, ""}, {"m", -1, ""}, {"5m5m", -1, ""}, {"5s5m", -1, ""}, {"5w", -1, ""},
		{"-5m", -1, ""}, {"5 m", -1, ""}, {"3650d1s", -1, ""}, {"1h30", -1, ""}, {"9223372036854775808s", -1, ""},
	} {
		got, err := ParseDuration(tt.in)
		if tt.want < 0 {
			if err == nil {
				t.Errorf("ParseDuration(%q) = %v, no error", tt.in, got)
			}
		} else if err != nil || got != tt.want || FormatDuration(got) != tt.out {
			t.Errorf("ParseDuration(%q) = %v, %v, written %s", tt.in, got, err, FormatDuration(got))
		}
	}
}

func TestSpace(t *testing.T) {
	for _, tt := range []struct {
		in, out string
		of      uint64 // of 1,000,000,000
	}{
		{"0", "0", 0}, {"5%", "5%", 50000000}, {"0%", "0", 0}, {"16m", "16M", 16 << 20}, {"1000", "1000", 1000},
		{"1024K", "1M", 1 << 20}, {"2T", "2T", 2 << 40},
	} {
		got, ok := parseSpace(tt.in)
		if !ok || got.String() != tt.out || got.Of(1e9) != tt.of {
			t.Errorf("%s: %v %s, of 1e9: %d", tt.in, ok, got, got.Of(1e9))
		}
	}
}

func TestExpandPath(t *testing.T) {
	for _, tt := range []struct{ pattern, home, want string }{
		{"/var/mail/%u", "/home/joe", "/var/mail/joe"},
		{"~/.forward", "/home/joe", "/home/joe/.forward"},
		{"~/.forward", "/home/joe/", "/home/joe/.forward"},
		{"~/.forward", "/", "/.forward"},
		{"~/.forward", "", ""},
		{"~/m/%u%%x", "/h%u", "/h%u/m/joe%x"},
		{"/a~/b", "/h", "/a~/b"},
	} {
		if got := ExpandPath(tt.pattern, "joe", tt.home); got != tt.want {
			t.Errorf("ExpandPath(%s, joe, %s) = %s; want %s", tt.pattern, tt.home, got, tt.want)
		}
	}
}

func TestHostName(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mailname")
	for _, tt := range []struct{ content, want, err string }{
		{"mail.example.org\n", "mail.example.org", ""},
		{"a_b.c-d", "a_b.c-d", ""},
		{"a.example extra\nb", "a.example", ""},
		{"a.example\r\n", "a.example", ""},
		{"\nb", SystemName(), "MAILNAME: " + file + ": no host name on the first line"},
		{"", SystemName(), "MAILNAME: " + file + ": no host name on the first line"},
	} {
		if err := os.WriteFile(file, []byte(tt.content), 0o600); err != nil {
			t.Fatal(err)
		}
		c := &Config{MailName: file}
		name, err := c.HostName()
		if name != tt.want || (err == nil) != (tt.err == "") || err != nil && err.Error() != tt.err {
			t.Errorf("%q: %s, %v", tt.content, name, err)
		}
	}
	if name, err := (&Config{MailName: file + "-"}).HostName(); name == "" || err == nil {
		t.Errorf("missing file: %s, %v", name, err)
	}
	if name, err := (&Config{}).HostName(); name != SystemName() || err != nil {
		t.Errorf("no MAILNAME: %s, %v", name, err)
	}
	if name, err := (&Config{MailName: "x.example"}).HostName(); name != "x.example" || err != nil {
		t.Errorf("MAILNAME x.example: %s, %v", name, err)
	}
}

func TestMasqueradeParts(t *testing.T) {
	for _, tt := range [][3]string{{"", "", ""}, {"h", "", "h"}, {"u@", "u", ""}, {"u@h", "u", "h"}, {"@h", "", "h"}} {
		if user, host := (&Config{Masquerade: tt[0]}).MasqueradeParts(); user != tt[1] || host != tt[2] {
			t.Errorf("%s: %s, %s", tt[0], user, host)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"PORT 26\nSMARTHOST a,[::1]:25 mx:b # c\nMINFREE 5%\nRETRY_MIN 1h30m", "VERIFYCERT no\nMASQUERADE a@b", "MAILBOX pipe:x  y\nFORWARD ~/%u",
		"FINGERPRINT " + strings.Repeat("aB", 32), "ALIASES a b,/c\nMAILNAME x", "\ufeff#", "X\x00\xff", "PORT\nPORT", "LOCALDOMAINS A.ü", "MINFREE 3k",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, problems := parse("/etc/dma/dma.conf", []byte(s))
		for _, p := range problems {
			if len(p.Text) > 400 || strings.ContainsFunc(p.String(), func(r rune) bool { return r < 0x20 || r >= 0x7f }) {
				t.Errorf("problem %q is not one printable line", p)
			}
		}
		// What Write prints is read as the same configuration.
		var b bytes.Buffer
		if err := c.Write(&b); err != nil {
			t.Fatal(err)
		}
		again, problems := parse("/etc/dma/dma.conf", b.Bytes())
		for _, p := range problems {
			if !strings.HasPrefix(p.Text, "NULLCLIENT needs") {
				t.Errorf("written as\n%swith problem %s", b.String(), p)
			}
		}
		c.SmarthostBad = false
		if !reflect.DeepEqual(again, c) {
			t.Errorf("%+v\nwritten as\n%sis read as\n%+v", c, b.String(), again)
		}
	})
}

// TestDoor: the socket of the host's own service is not the door of another
// configuration.
func TestDoor(t *testing.T) {
	for _, tc := range []struct{ file, socket, want string }{
		{"", "", DefaultSocket},
		{DefaultFile, "", DefaultSocket},
		{DefaultFile, "/s", "/s"},
		{"/home/al/dma.conf", "", ""},
		{"/home/al/dma.conf", "/home/al/s", "/home/al/s"},
	} {
		c := Default()
		c.File, c.Socket = tc.file, tc.socket
		if got := c.Door(); got != tc.want {
			t.Errorf("%+v: %q", tc, got)
		}
	}
}

// TestMboxFlock: without MBOXLOCK the system decides.
func TestMboxFlock(t *testing.T) {
	for lock, want := range map[string]bool{"": runtime.GOOS != "linux", "fcntl": false, "flock": true} {
		c := Default()
		c.MboxLock = lock
		if got := c.MboxFlock(); got != want {
			t.Errorf("MBOXLOCK %q: flock %v", lock, got)
		}
	}
}
