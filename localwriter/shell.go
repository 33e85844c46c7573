package localwriter

import (
	"os"
	"path/filepath"
	"strings"
)

// args returns the program to execute and its arguments, and whether it is
// executed without a shell.
func (c Command) args() (args []string, direct bool) {
	args = splitLine(c.Line)
	if args == nil {
		return c.shell(), false
	}
	if strings.Contains(args[0], "/") {
		return args, true
	}
	// What no directory has may be a command of the shell, such as exit.
	path := c.look(args[0])
	if path == "" {
		return c.shell(), false
	}
	args[0] = path
	return args, true
}

func (c Command) shell() []string { return []string{"/bin/sh", "-c", c.Line} }

// splitLine splits a command line at blanks, or returns nil if it takes a shell
// to understand it: for any character but letters, digits and those that never
// mean anything to one. '=' does so in the first word.
func splitLine(line string) []string {
	for _, c := range []byte(line) {
		if !isAlnum(c) && !strings.ContainsRune("@%-_=+:,./ \t", rune(c)) {
			return nil
		}
	}
	args := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' })
	if len(args) == 0 || strings.Contains(args[0], "=") {
		return nil
	}
	return args
}

// look finds a program in the PATH of the command. Relative directories are
// left out.
func (c Command) look(name string) string {
	path := defaultPath
	for _, v := range c.Env {
		if p, ok := strings.CutPrefix(v, "PATH="); ok {
			path = p
		}
	}
	for _, dir := range filepath.SplitList(path) {
		if !filepath.IsAbs(dir) {
			continue
		}
		file := filepath.Join(dir, name)
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0 {
			return file
		}
	}
	return ""
}
