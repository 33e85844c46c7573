package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
	"unicode/utf8"

	"dma/forward"
	"dma/internal/passwd"
)

// Setup is what an agent process is told by the parent when it is started. It
// believes nobody else about whom it serves and how.
type Setup struct {
	User     passwd.User // who is served
	UID, GID int         // what the process has to be: the user, but for root's mailbox
	Groups   []int       // its supplementary groups, all of them
	Role     Role

	HostName    string
	Mailbox     string // MAILBOX of dma.conf
	Flock       bool   // MBOXLOCK of dma.conf
	Forward     string // FORWARD of dma.conf
	CommandTime time.Duration
	MinUID      int
	Listed      []string // users below MinUID who may have a .forward
	Aliases     []string // the aliases files
	AliasUser   string
	MailFile    bool // the mailbox is handed over, opened
	ReadOnly    bool // it reads the .forward and delivers nothing
}

// maxSetup is the greatest length of a Setup as it is written, in octets.
const maxSetup = 64 << 10

// WriteSetup writes s for ReadSetup. Names that are not UTF-8 are an error.
func WriteSetup(w io.Writer, s Setup) error {
	s.User.Gecos = "" // nobody asks for it
	for _, text := range append([]string{s.User.Name, s.User.Home, s.User.Shell, s.HostName, s.Mailbox, s.Forward, s.AliasUser}, s.Aliases...) {
		if !utf8.ValidString(text) {
			return fmt.Errorf("agent for %s: %q is not UTF-8", s.User.Name, text)
		}
	}
	b, err := json.Marshal(s)
	if err == nil && len(b) > maxSetup {
		err = errors.New("too long")
	}
	if err == nil {
		_, err = w.Write(b)
	}
	if err != nil {
		return fmt.Errorf("agent for %s: setup: %w", s.User.Name, err)
	}
	return nil
}

// ReadSetup reads to the end what WriteSetup wrote.
func ReadSetup(r io.Reader) (Setup, error) {
	var s Setup
	b, err := io.ReadAll(io.LimitReader(r, maxSetup+1))
	if err == nil && len(b) > maxSetup {
		err = errors.New("too long")
	}
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	switch {
	case err != nil:
	case !s.Role.Valid():
		err = fmt.Errorf("role %q", s.Role)
	case !passwd.ValidName(s.User.Name):
		err = fmt.Errorf("user %q", s.User.Name)
	case s.UID == 0:
		err = errors.New("an agent is never root")
	case s.User.UID != s.UID && (s.User.UID != 0 || s.Role != MailboxRole || !s.MailFile):
		err = fmt.Errorf("uid %d cannot serve uid %d", s.UID, s.User.UID)
	}
	if err != nil {
		return Setup{}, fmt.Errorf("setup: %w", err)
	}
	return s, nil
}

// NewOwn returns the agent that a process serves with. Mailbox is the file that
// was handed over, or nil.
func NewOwn(s Setup, mailbox *os.File) *Own {
	return &Own{
		UID: s.User.UID, MinUID: s.MinUID, Listed: s.Listed, Mailbox: s.Mailbox, Flock: s.Flock, Forwards: s.Forward, Limit: s.CommandTime,
		HostName: s.HostName, Aliases: forward.NewAliasFile(s.Aliases...), AliasUser: s.AliasUser, MailFile: mailbox,
		ReadOnly: s.ReadOnly,
	}
}
