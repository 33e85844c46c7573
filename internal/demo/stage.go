package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// stage is the folder that everything of the demo lies in.
type stage struct {
	root string // of the project
	dir  string
}

// marker tells a folder that an earlier demo made from one that somebody
// else's files lie in.
const marker = ".made-by-scripts-demo"

// setUp makes the stage anew: users with their homes, aliases, configuration.
func setUp(root, smarthost string) (*stage, error) {
	s := &stage{root: root, dir: filepath.Join(root, "demo")}
	if _, err := os.Lstat(s.dir); err == nil {
		if _, err := os.Lstat(s.path(marker)); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s exists and is not the work of an earlier demo; move it away", s.dir)
		}
		if err := os.RemoveAll(s.dir); err != nil {
			return nil, err
		}
	}
	for _, d := range []string{"mail", "home/alice", "home/bob", "home/carol"} {
		if err := os.MkdirAll(s.path(d), 0o755); err != nil {
			return nil, err
		}
	}
	var users strings.Builder
	for i, name := range []string{"alice", "bob", "carol"} {
		fmt.Fprintf(&users, "%s:x:%d:%d:%s Example,,,:%s:/bin/sh\n", name, 2001+i, 2001+i, strings.ToUpper(name[:1])+name[1:], s.path("home", name))
	}
	for file, text := range map[string]string{
		marker:   "",
		"passwd": users.String(),
		"aliases": "# who reads the mail of the system's accounts\n" +
			"postmaster: alice\nroot: alice\nteam: bob, carol\n",
		"home/bob/.forward":   "# a copy stays here, another one goes elsewhere\n\\bob, bob@elsewhere.example\n",
		"home/carol/.forward": "\"|tee -a $HOME/filtered | grep -c . >$HOME/lines\"\n",
		"dma.conf": "# the configuration of the demo, see dma.conf(5)\n" +
			"SPOOLDIR " + s.path("spool") + "\n" +
			"SMARTHOST " + smarthost + "\n" +
			"MAILNAME demo.example\n" +
			"ALIASES " + s.path("aliases") + "\n" +
			"USERS " + s.path("passwd") + "\n" +
			"MAILBOX mbox:" + s.path("mail") + "/%u\n",
	} {
		if err := os.WriteFile(s.path(file), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	// In the first moments of aliases an unknown name waits; these are old.
	old := time.Now().Add(-time.Hour)
	return s, os.Chtimes(s.path("aliases"), old, old)
}

func (s *stage) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

func (s *stage) bin(name string) string { return filepath.Join(s.root, "bin", name) }

// short shortens paths for the screen.
func (s *stage) short(text string) string { return strings.ReplaceAll(text, s.root+"/", "") }
