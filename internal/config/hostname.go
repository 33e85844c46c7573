package config

import (
	"bytes"
	"fmt"
	"os"
)

// HostName returns the name by which this host calls itself in mail: MAILNAME,
// or the first line of the file that MAILNAME names, cut at the first character
// that is no letter, digit, hyphen, dot or underscore; else the system's host
// name, else "localhost". The name is never empty. The error says that MAILNAME
// names a file without a usable name in it; the name that goes with it is the
// system's.
func (c *Config) HostName() (string, error) {
	if c.MailName == "" {
		return SystemName(), nil
	}
	if c.MailName[0] != '/' {
		return c.MailName, nil
	}
	data, err := read(c.MailName)
	if err != nil {
		return SystemName(), fmt.Errorf("MAILNAME: %w", err)
	}
	line, _, _ := bytes.Cut(data, []byte("\n"))
	name := cutName(string(line))
	if name == "" {
		return SystemName(), fmt.Errorf("MAILNAME: %s: no host name on the first line", c.MailName)
	}
	return name, nil
}

// SystemName returns the system's host name, cut as HostName cuts, or
// "localhost" where there is none.
func SystemName() string {
	name, err := os.Hostname()
	if name = cutName(name); err != nil || name == "" {
		return "localhost"
	}
	return name
}

// cutName returns s up to the first character that a host name does not have.
func cutName(s string) string {
	const most = 255
	n := 0
	for n < len(s) && n < most && isNameByte(s[n]) {
		n++
	}
	return s[:n]
}

func isNameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_'
}
