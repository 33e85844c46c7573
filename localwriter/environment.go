package localwriter

import "strings"

// defaultPath is where programs are found if nothing else is said.
const defaultPath = "/usr/local/bin:/usr/bin:/bin"

// Variables are what a command is told about a delivery.
type Variables struct {
	User  string // the recipient's login name: USER and LOGNAME
	Home  string // HOME
	Shell string // SHELL; /bin/sh if empty
	Path  string // PATH; /usr/local/bin:/usr/bin:/bin if empty

	Sender            string // envelope sender; empty for the null sender
	Recipient         string // the address that led to the command
	OriginalRecipient string // the address as submitted
	Local             string // local part of Recipient, with the extension
	Extension         string // what follows '+' in Local
	Domain            string // domain of Recipient

	TZ, Lang string // TZ and LANG; left out if empty
}

// Environment returns the environment of a command. What comes from an address
// is in somebody else's hand, so that everything but letters, digits and
// "!@%-_=+:,./" becomes '_' in it, as with Postfix's command_expansion_filter.
// A variable without a value is there, and empty. TZ and LANG are left out instead,
// since empty ones have a meaning, and so is a value that is not one short line of
// ASCII.
func Environment(v Variables) []string {
	or := func(s, otherwise string) string {
		if s == "" {
			return otherwise
		}
		return s
	}
	env := []string{
		"USER=" + safeValue(v.User),
		"LOGNAME=" + safeValue(v.User),
		"HOME=" + oneLine(v.Home),
		"SHELL=" + oneLine(or(v.Shell, "/bin/sh")),
		"PATH=" + oneLine(or(v.Path, defaultPath)),
		"SENDER=" + safeValue(v.Sender),
		"RECIPIENT=" + safeValue(v.Recipient),
		"ORIGINAL_RECIPIENT=" + safeValue(v.OriginalRecipient),
		"LOCAL=" + safeValue(v.Local),
		"EXTENSION=" + safeValue(v.Extension),
		"DOMAIN=" + safeValue(v.Domain),
	}
	for _, l := range [][2]string{{"TZ", v.TZ}, {"LANG", v.Lang}} {
		if s := l[1]; s != "" && printableLine(s, 255) == s {
			env = append(env, l[0]+"="+s)
		}
	}
	return env
}

// safeValue replaces everything that a careless script could trip over.
func safeValue(s string) string {
	b := []byte(s)
	for i, c := range b {
		if !isAlnum(c) && strings.IndexByte("!@%-_=+:,./", c) < 0 {
			b[i] = '_'
		}
	}
	return string(b)
}

// oneLine replaces control characters. What the user database says may have
// blanks.
func oneLine(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c < ' ' || c == 0x7f {
			b[i] = '_'
		}
	}
	return string(b)
}
