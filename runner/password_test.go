package runner

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
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

// TestPasswordCommandHome: the home is that of the account, whatever the program
// that has started this one had in its environment.
func TestPasswordCommandHome(t *testing.T) {
	t.Setenv("HOME", "/somebody/else")
	file := t.TempDir() + "/passwd"
	c := config.Default()
	c.PasswordCmd = `echo "home: ${HOME-none}"`
	for line, want := range map[string]string{
		fmt.Sprintf("me:x:%d:1:/:/home/of/me:/bin/sh\n", os.Geteuid()): "home: /home/of/me",
		"other:x:4242:4242::/:/bin/sh\n":                               "home: none",
	} {
		if err := os.WriteFile(file, []byte(line), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := passwordCommand(c, passwd.File(file))(context.Background(), "me", "h"); got != want || err != nil {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	c.TokenUser = "me"
	if _, err := passwordCommand(c, passwd.File(t.TempDir()))(context.Background(), "me", "h"); err == nil {
		t.Error("ran without knowing whose it is")
	}
}

// TestPasswordCommandChild: a command may leave a process behind that holds its
// output open.
func TestPasswordCommandChild(t *testing.T) {
	file := t.TempDir() + "/pid"
	c := config.Default()
	c.PasswordCmd = "sleep 300 & echo $! >" + file + "; echo secret"
	got, err := passwordCommand(c, passwd.System())(context.Background(), "me", "h")
	if got != "secret" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("the process is not left alone: %v", err)
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
