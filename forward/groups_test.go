package forward

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAlone(t *testing.T) {
	f, err := os.Open("testdata/groups.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows := 0
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		if line == "" || line[0] == '#' {
			continue
		}
		rows++
		col := strings.Fields(line)
		if len(col) < 3 {
			t.Fatalf("groups.txt:%d: %d columns", n, len(col))
		}
		want := strings.Join(col[2:], " ")
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			dir := t.TempDir()
			g := GroupFiles{Group: filepath.Join(dir, "group"), Passwd: filepath.Join(dir, "passwd"), Switch: filepath.Join(dir, "nsswitch.conf"), Userdb: []string{filepath.Join(dir, "userdb")}}
			write := func(path, text string) {
				t.Helper()
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			write(g.Passwd, "root:x:0:0::/root:/bin/sh\njim:x:1000:1000::/home/jim:/bin/sh\njames:x:1000:1000::/home/jim:/bin/sh\n"+
				"ann:x:1001:1001::/h:/s\njoe:x:1002:1001::/h:/s\nkim:x:1003:100::/h:/s\nbroken:x:\n")
			first, rest, _ := strings.Cut(col[0], ":")
			gid, _, _ := strings.Cut(rest, ":")
			group := "root:x:0:\nother:x:77:ann,kim\n# comment\nbroken\n"
			switch first {
			case "-":
			case "+":
				group += "+:::\n"
			default:
				group += "g:" + col[0] + "\n"
			}
			write(g.Group, group)
			if col[1] != "-" {
				sources := strings.ReplaceAll(strings.ReplaceAll(col[1], ",", " "), "[", " [")
				write(g.Switch, "# passwd: nis\npasswd: files\ngroup:\t"+sources+" # all\nhosts: files dns\n")
			}
			id, ok := number(gid)
			if !ok {
				t.Fatalf("no gid in %q", col[0])
			}
			alone, err := g.Alone(1000, id)
			got := map[bool]string{true: "alone", false: "shared"}[alone]
			if err != nil {
				got = "unknown: " + err.Error()
			}
			if text, ok := strings.CutPrefix(want, "unknown: "); ok {
				if err == nil || !strings.Contains(err.Error(), text) {
					t.Errorf("got %s, want %s", got, want)
				}
			} else if got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			if alone, err := g.Alone(4711, id); alone {
				t.Errorf("a user whom nobody knows is alone in it (%v)", err)
			}
		})
	}
	if rows < 20 {
		t.Errorf("%d rows", rows)
	}
	dir := t.TempDir()
	if _, err := (GroupFiles{Group: dir, Passwd: dir, Switch: dir + "/none"}).Alone(0, 0); err == nil {
		t.Error("a directory is a file of users")
	}
}

// TestSystemGroups: the zero GroupFiles are the system's, and nobody is alone in a
// group that is not there.
func TestSystemGroups(t *testing.T) {
	if alone, err := (GroupFiles{}).Alone(os.Geteuid(), 1<<30); alone {
		t.Errorf("alone in a group that is not there (%v)", err)
	}
}

// TestMemberships: where systemd has records of who is in which group, the files
// are not all there is.
func TestMemberships(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"group": "jim:x:1000:\n", "passwd": "jim:x:1000:1000::/:\n", "switch": "group: files systemd\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	g := GroupFiles{Group: dir + "/group", Passwd: dir + "/passwd", Switch: dir + "/switch", Userdb: []string{dir}}
	if alone, err := g.Alone(1000, 1000); !alone || err != nil {
		t.Errorf("without records: %v, %v", alone, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ann:jim.membership"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if alone, err := g.Alone(1000, 1000); alone || err == nil {
		t.Errorf("with a record: %v, %v", alone, err)
	}
}
