package runner

import (
	"context"
	"os"
	"strings"
	"testing"

	"dma/internal/config"
	"dma/internal/passwd"
)

func TestPasswordCommand(t *testing.T) {
	c := config.Default()
	if passwordCommand(c, passwd.System()) != nil {
		t.Error("a command without PASSWORDCMD")
	}
	for _, test := range []struct {
		command, want, err string
	}{
		{command: `echo "secret of $LOGIN at $HOST"; echo more`, want: "secret of me at relay.example"},
		{command: `printf 'crlf\r\nmore'`, want: "crlf"},
		{command: "true", err: "printed nothing"},
		{command: "echo half a secret; exit 3", err: "exit status 3"},
		{command: "/no/such/program", err: "exit status 127"},
	} {
		c.PasswordCmd = test.command
		got, err := passwordCommand(c, passwd.System())(context.Background(), "me", "relay.example")
		if got != test.want || (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
			t.Errorf("%s: %q, %v; want %q, %q", test.command, got, err, test.want, test.err)
		}
		if err != nil && strings.Contains(err.Error(), "half") {
			t.Errorf("the error tells the secret: %v", err)
		}
	}
}

func TestTokenUser(t *testing.T) {
	file := t.TempDir() + "/passwd"
	if err := os.WriteFile(file, []byte("other:x:4242:4242::/:/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := config.Default()
	c.PasswordCmd, c.TokenUser = "echo secret", "other"
	if s, err := passwordCommand(c, passwd.File(file))(context.Background(), "me", "h"); err == nil || s != "" {
		t.Errorf("%q, %v: another user's command ran as this one", s, err)
	}
}
