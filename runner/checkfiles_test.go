package runner

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dma/internal/config"
	"dma/internal/passwd"
	"dma/smarthost"
)

// certificate returns one that ends at a time, and its key, in PEM.
func certificate(t *testing.T, until time.Time) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: until.AddDate(-1, 0, 0), NotAfter: until}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})) +
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
}

// TestCheckFiles: what check says about the files and keys for other hosts, and
// where. DIR stands for the folder.
func TestCheckFiles(t *testing.T) {
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	good := certificate(t, now.AddDate(0, 6, 0))
	refused, err := json.Marshal(map[string]any{"refused": []smarthost.Refusal{
		{Login: "me", Relay: "relay.example[192.0.2.1]:25", Reason: "535 5.7.8 \x1bno", Times: 3, At: now.Add(-time.Minute), Until: now.Add(time.Hour)},
		{Login: "you", Relay: "relay.example[192.0.2.1]:25", Reason: "535", Times: 1, At: now.Add(-time.Hour), Until: now.Add(-time.Minute)},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		conf   string // the file; DIR is the folder
		files  map[string]string
		mode   os.FileMode // of the files; 0600
		net    bool        // a group may read the credentials
		reader int         // uid that has to; the test's own
		want   []string
	}{
		{name: "nothing"},
		{name: "all is well", conf: "AUTHPATH auth\nTLSPOLICY tls\nREWRITE map\nSENDERRELAY senders\nCERTFILE cert\nPASSWORDCMD pass\nTOKENUSER me",
			files: map[string]string{"auth": "me|relay.example\n", "tls": "* may\n", "map": "me: me@world.example\n", "senders": "a@b.example relay.example\n", "cert": good},
			want:  []string{"note DIR/cert: our own certificate is valid until 2026-12-01 12:00 UTC"}},
		{name: "nothing is there", conf: "AUTHPATH auth\nTLSPOLICY tls\nREWRITE map\nSENDERRELAY senders\n\nCERTFILE cert", want: []string{
			"DIR/auth: the logins cannot be read, and mail for all relays waits: no such file or directory; mend AUTHPATH or the file",
			"DIR/tls: the policies cannot be read, and mail for all relays waits: no such file or directory; mend TLSPOLICY or the file",
			"DIR/dma.conf:3: REWRITE: open DIR/map: no such file or directory; mail for other hosts waits until it can be read",
			"DIR/dma.conf:4: SENDERRELAY: open DIR/senders: no such file or directory; mail for other hosts waits until it can be read",
			"DIR/cert: our own certificate and its key cannot be loaded, and relays that ask for one get no mail: no such file or directory; put both into this file in PEM",
		}},
		{name: "lines that cannot be read", conf: "AUTHPATH auth\nTLSPOLICY tls\nREWRITE map\nSENDERRELAY senders",
			files: map[string]string{"auth": "# x\nhunter2\nme|relay.example\n", "tls": "a..b may\nc.example what\n", "map": "a\n\nb: c@@d\n", "senders": "x relay.example\n"},
			want: []string{
				"DIR/auth:2: a line must be login|host:password; mail for each host without a line of its own waits until this line is mended",
				"DIR/auth:3: there is no password, and no PASSWORDCMD; mail for the host waits until this line is mended",
				`DIR/tls:1: destination "a..b": not a host name; mail for each host without a line of its own waits until this line is mended`,
				`DIR/tls:2: "what" is no policy: write none, may, encrypt, verify or fingerprint; mail for c.example waits until this line is mended`,
				"DIR/map:1: an address is missing after a; the line is ignored",
				`DIR/map:3: address "c@@d": more than one @; the line is ignored`,
				"DIR/senders:1: *",
			}},
		{name: "everybody reads", conf: "AUTHPATH auth\nCERTFILE cert", mode: 0o644, files: map[string]string{"auth": "me|relay.example:x\n", "cert": good}, want: []string{
			"DIR/auth: its mode is 0644: everybody on this host can read or change the passwords; chmod 0600 DIR/auth",
			"DIR/cert: its mode is 0644: everybody on this host can read or change the key; chmod 0600 DIR/cert",
			"note DIR/cert: *",
		}},
		{name: "the group reads", conf: "AUTHPATH auth", mode: 0o640, files: map[string]string{"auth": "me|relay.example:x\n"}, want: []string{
			"DIR/auth: its mode is 0640: its group can read or change the passwords; chmod 0600 DIR/auth",
		}},
		{name: "the group of the net process reads", conf: "AUTHPATH auth", mode: 0o640, net: true, files: map[string]string{"auth": "me|relay.example:x\n"}},
		{name: "it writes", conf: "AUTHPATH auth", mode: 0o660, net: true, files: map[string]string{"auth": "me|relay.example:x\n"}, want: []string{
			"DIR/auth: its mode is 0660: its group can read or change the passwords; chmod 0640 DIR/auth",
		}},
		{name: "the service does not read", conf: "AUTHPATH auth\nCERTFILE cert", reader: 4242, files: map[string]string{"auth": "me|relay.example:x\n", "cert": good}, want: []string{
			"DIR/auth: the user of the spool (uid 4242) cannot read it, and mail waits; chown 4242 and chmod 0600 DIR/auth",
			"DIR/cert: the user of the spool (uid 4242) cannot read it, and mail waits; chown 4242 and chmod 0600 DIR/cert",
			"note DIR/cert: *",
		}},
		{name: "the net process does not read", conf: "AUTHPATH auth", reader: 4242, net: true, files: map[string]string{"auth": "me|relay.example:x\n"}, want: []string{
			"DIR/auth: the net process cannot read it, and mail waits; chgrp *",
		}},
		{name: "the net process reads by its group", conf: "AUTHPATH auth", reader: 4242, net: true, mode: 0o640, files: map[string]string{"auth": "me|relay.example:x\n"}},
		{name: "no certificate", conf: "CERTFILE cert", files: map[string]string{"cert": "x"}, want: []string{
			"DIR/cert: our own certificate and its key cannot be loaded, and relays that ask for one get no mail: tls: *",
		}},
		{name: "the certificate has expired", conf: "CERTFILE cert", files: map[string]string{"cert": certificate(t, now.Add(-time.Hour))}, want: []string{
			"DIR/cert: our own certificate has expired on 2026-06-01 11:00 UTC; renew it", "note DIR/cert: *",
		}},
		{name: "it will soon", conf: "CERTFILE cert", files: map[string]string{"cert": certificate(t, now.Add(24*time.Hour))}, want: []string{
			"DIR/cert: our own certificate expires on 2026-06-02 12:00 UTC; renew it", "note DIR/cert: *",
		}},
		{name: "it is of tomorrow", conf: "CERTFILE cert", files: map[string]string{"cert": certificate(t, now.AddDate(1, 0, 1))}, want: []string{
			"DIR/cert: our own certificate is not valid before 2026-06-02 12:00 UTC; wait, or set the clock", "note DIR/cert: *",
		}},
		{name: "INSECURE", conf: "\nINSECURE\n", want: []string{
			"DIR/dma.conf:2: INSECURE: it has no effect: passwords and tokens never cross a connection that is not encrypted; remove it",
		}},
		{name: "PASSWORDCMD without logins", conf: "PASSWORDCMD pass", want: []string{
			"DIR/dma.conf:1: PASSWORDCMD: it is never asked: AUTHPATH names no file with the logins; set that or remove this",
		}},
		{name: "TOKENUSER alone", conf: "TOKENUSER\tme", want: []string{
			"DIR/dma.conf:1: TOKENUSER: it has no effect without PASSWORDCMD; set that or remove this",
		}},
		{name: "TOKENUSER is nobody", conf: "AUTHPATH auth\nPASSWORDCMD pass\nTOKENUSER nobody.here", files: map[string]string{"auth": ""}, want: []string{
			"DIR/dma.conf:3: TOKENUSER: there is no user nobody.here; name one who exists",
		}},
		{name: "TOKENUSER is another one", conf: "AUTHPATH auth\nPASSWORDCMD pass\nTOKENUSER other", files: map[string]string{"auth": ""}, want: []string{
			"DIR/dma.conf:3: TOKENUSER: other is not the user of the spool (uid 4242), who alone can run PASSWORDCMD, and mail waits; name that user or none",
		}},
		{name: "TOKENUSER is another one in a shared spool", conf: "AUTHPATH auth\nPASSWORDCMD pass\nTOKENUSER other", net: true, files: map[string]string{"auth": ""}},
		{name: "TOKENUSER is one of the service", conf: "AUTHPATH auth\nPASSWORDCMD pass\nTOKENUSER me", net: true, files: map[string]string{"auth": ""}, want: []string{
			"DIR/dma.conf:3: TOKENUSER: me may not run PASSWORDCMD; name a user who is neither root nor one of the service",
		}},
		{name: "no TOKENUSER in a shared spool", conf: "AUTHPATH auth\nPASSWORDCMD pass", net: true, files: map[string]string{"auth": ""}, want: []string{
			"DIR/dma.conf:2: PASSWORDCMD: nobody runs it: set TOKENUSER to the user whose it is",
		}},
		{name: "ALIASUSER is nobody", conf: "ALIASUSER nobody.here", want: []string{
			"DIR/dma.conf:1: ALIASUSER: there is no user nobody.here, and mail for the commands and files of the aliases waits; name one who exists",
		}},
		{name: "ALIASUSER is the user of the spool", conf: "ALIASUSER me"},
		{name: "ALIASUSER is another one", conf: "ALIASUSER other", want: []string{
			"DIR/dma.conf:1: ALIASUSER: other is not the user of the spool (uid 4242), whose the commands and files of the aliases are, and mail for them waits; name that user or none",
		}},
		{name: "ALIASUSER is another one in a shared spool", conf: "ALIASUSER other", net: true},
		{name: "ALIASUSER is one of the service", conf: "ALIASUSER me", net: true, want: []string{
			"DIR/dma.conf:1: ALIASUSER: the commands and files of the aliases cannot be those of me, and mail for them waits; name a user who is neither root nor one of the service",
		}},
		{name: "ALIASUSER reads the credentials", conf: "ALIASUSER other", net: true, reader: 4243, want: []string{
			"DIR/dma.conf:1: ALIASUSER: the commands and files of the aliases cannot be those of other, *",
		}},
		{name: "a refused login", conf: "AUTHPATH auth", files: map[string]string{"auth": "me|relay.example:x\n", "logins": string(refused)}, want: []string{
			`DIR/auth: relay.example[192.0.2.1]:25 has refused the login of me 3 times, last at 2026-06-01T11:59:00Z: 535 5.7.8 ?no; mend it here, or there and run "dma-runner flush"`,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			write := func(name, text string, mode os.FileMode) {
				t.Helper()
				path := filepath.Join(dir, name)
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(path, mode); err != nil {
					t.Fatal(err)
				}
			}
			mode := c.mode
			if mode == 0 {
				mode = 0o600
			}
			for name, text := range c.files {
				write(name, text, mode)
			}
			write("dma.conf", c.conf, 0o644)
			write("passwd", "me:x:4242:4242::/:/bin/sh\nother:x:4243:4243::/:/bin/sh\n", 0o644)
			conf, problems, err := config.Load(filepath.Join(dir, "dma.conf"), true)
			if err != nil || len(problems) > 0 {
				t.Fatal(problems, err)
			}
			var got []string
			k := &fileCheck{
				config: conf, users: passwd.File(filepath.Join(dir, "passwd")), uid: 4242, reader: os.Geteuid(), net: -1, state: filepath.Join(dir, "logins"), now: now,
				problem: func(p config.Problem) { got = append(got, strings.ReplaceAll(p.String(), dir, "DIR")) },
				note:    func(s string) { got = append(got, "note "+strings.ReplaceAll(s, dir, "DIR")) },
			}
			if c.net {
				k.net = os.Getegid() // of the files that the test makes
			}
			if c.reader != 0 {
				k.reader = c.reader
			}
			k.run(context.Background())
			ok := len(got) == len(c.want)
			for i := 0; ok && i < len(got); i++ {
				begin, open := strings.CutSuffix(c.want[i], "*")
				ok = got[i] == c.want[i] || open && strings.HasPrefix(got[i], begin)
			}
			if !ok {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
			if strings.Contains(strings.Join(got, ""), "hunter2") {
				t.Error("a line of the credentials is shown")
			}
		})
	}
}

// TestCheckSocket: what check says about the socket of a server of mailboxes.
func TestCheckSocket(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "lmtp")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conf := filepath.Join(dir, "dma.conf")
	if err := os.WriteFile(conf, []byte("\nMAILBOX lmtp:"+path+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	const others = 4242
	closed := "cannot write to " + path + ", and mail for users waits; give it the socket"
	for _, c := range []struct {
		name        string
		mode        os.FileMode
		reader, net int
		want        string
	}{
		{"of the user", 0o600, os.Geteuid(), -1, ""},
		{"of another one", 0o600, others, -1, "uid 4242, which delivers, " + closed},
		{"that everybody may use", 0o666, others, others, ""},
		{"of the group of the net process", 0o660, others, os.Getegid(), ""},
		{"of another group", 0o660, others, others, "uid 4242, which delivers, " + closed},
	} {
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		if got := checkSocket(t, conf, c.reader, c.net); !strings.Contains(got, c.want) || c.want == "" && got != "" {
			t.Errorf("a socket %s: %q", c.name, got)
		}
	}
	listener.Close()
	if got, want := checkSocket(t, conf, others, -1), conf+":2: MAILBOX: stat "+path+": no such file or directory; mail for users waits until the server is there"; got != want {
		t.Errorf("no socket: %q, want %q", got, want)
	}
	if err := os.WriteFile(path, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if got := checkSocket(t, conf, others, -1); !strings.Contains(got, path+" is no socket") {
		t.Errorf("a file: %q", got)
	}
}

func checkSocket(t *testing.T, path string, reader, net int) string {
	t.Helper()
	conf, problems, err := config.Load(path, true)
	if err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	var got []string
	k := &fileCheck{config: conf, uid: reader, reader: reader, net: net, problem: func(p config.Problem) { got = append(got, p.String()) }}
	k.socket()
	return strings.Join(got, "\n")
}
