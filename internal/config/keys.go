package config

import (
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// key is one key of the file, bound to its field of a Config.
type key struct {
	name string

	// set reads a value. What it returns says how the value must be, or is empty.
	set func(string) string

	// get returns the value as the file would have it, or an empty string if the
	// key is not set.
	get func() string
}

// assign sets the key and returns the problem with it, or an empty string.
func (k *key) assign(value string) string {
	why := checkText(value)
	if why == "" {
		why = k.set(value)
	}
	if why == "" {
		return ""
	}
	text := k.name
	if value != "" {
		text += " " + show(value)
	}
	text += ": " + why
	if v := k.get(); v != "" {
		return text + "; " + show(v) + " is used"
	}
	return text + "; it is not set"
}

// checkText refuses what no value can have.
func checkText(s string) (why string) {
	for i := 0; i < len(s); i++ {
		if s[i] < 0x20 && s[i] != '\t' || s[i] == 0x7f {
			return "must be without control characters"
		}
	}
	if !utf8.ValidString(s) {
		return "must be UTF-8"
	}
	return ""
}

// keys returns all keys, bound to c. A relative path counts from dir.
func keys(c *Config, dir string) []key {
	path := checkPath(dir)
	return []key{
		list("SMARTHOST", &c.Smarthost, true, checkRelay),
		number("PORT", &c.Port, 1, 65535),
		list("RESOLVER", &c.Resolver, true, checkResolver),
		list("ALIASES", &c.Aliases, false, path),
		text("SPOOLDIR", &c.SpoolDir, false, path),
		text("SOCKET", &c.Socket, true, path),
		text("AUTHPATH", &c.AuthPath, true, path),
		text("CERTFILE", &c.CertFile, true, path),
		onOff("SECURETRANSFER", &c.SecureTransfer, true),
		onOff("STARTTLS", &c.StartTLS, true),
		onOff("OPPORTUNISTIC_TLS", &c.OpportunisticTLS, false),
		choice("VERIFYCERT", &c.VerifyCert, Yes),
		text("FINGERPRINT", &c.Fingerprint, false, checkFingerprint),
		onOff("INSECURE", &c.Insecure, false),
		onOff("DEFER", &c.Defer, false),
		onOff("FULLBOUNCE", &c.FullBounce, false),
		text("MAILNAME", &c.MailName, true, checkMailName),
		text("MASQUERADE", &c.Masquerade, true, checkMasquerade),
		onOff("NULLCLIENT", &c.NullClient, false),
		text("MAILBOX", &c.Mailbox, false, checkMailbox),
		text("MBOXLOCK", &c.MboxLock, true, checkMboxLock),
		text("FORWARD", &c.Forward, false, checkPattern),
		list("LOCALDOMAINS", &c.LocalDomains, true, checkDomain),
		text("USERS", &c.Users, true, path),
		duration("RETRY_MIN", &c.RetryMin, time.Second),
		duration("RETRY_MAX", &c.RetryMax, time.Second),
		duration("EXPIRE", &c.Expire, time.Second),
		duration("DELAYNOTICE", &c.DelayNotice, 0),
		duration("COMMANDTIME", &c.CommandTime, time.Second),
		number("CONCURRENCY", &c.Concurrency, 1, 1000),
		number("MINUID", &c.MinUID, 0, 1<<31-1),
		list("FORWARDUSERS", &c.ForwardUsers, true, checkUser),
		text("ALIASUSER", &c.AliasUser, true, checkUser),
		space("MINFREE", &c.MinFree),
		text("PASSWORDCMD", &c.PasswordCmd, true, nil),
		text("TOKENUSER", &c.TokenUser, true, checkUser),
		text("TLSPOLICY", &c.TLSPolicy, true, path),
		text("SENDERRELAY", &c.SenderRelay, true, path),
		text("REWRITE", &c.Rewrite, true, path),
		text("METRICS", &c.Metrics, true, path),
	}
}

// check reads one value: what it is to be in the Config, or how it must be.
type check func(string) (value, why string)

// text is a key with a string. An empty value unsets an optional one, as C dma's
// sample file has it.
func text(name string, p *string, optional bool, read check) key {
	set := func(s string) string {
		if s == "" && optional {
			*p = ""
			return ""
		}
		if read != nil {
			v, why := read(s)
			if why != "" {
				return why
			}
			s = v
		}
		*p = s
		return ""
	}
	return key{name, set, func() string { return *p }}
}

// list is a key with several strings. A bad one is left out, the others count.
func list(name string, p *[]string, optional bool, read check) key {
	set := func(s string) string {
		var good []string
		var why string
		for item := range strings.FieldsFuncSeq(s, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' }) {
			v, bad := read(item)
			switch {
			case bad == "":
				good = append(good, v)
			case why == "" && item == s:
				why = bad
			case why == "":
				why = show(item) + " " + bad
			}
		}
		if len(good) == 0 && why == "" && !optional {
			_, why = read("")
		}
		if len(good) > 0 || why == "" {
			*p = good
		}
		return why
	}
	return key{name, set, func() string { return strings.Join(*p, " ") }}
}

// onOff is a switch; a value that can't be read is the safer one of the two.
func onOff(name string, p *bool, safe bool) key {
	set := func(s string) string {
		v, ok := parseSwitch(s)
		if !ok {
			*p = safe
			return switchForm
		}
		*p = v
		return ""
	}
	return key{name, set, func() string { return yesNo(*p) }}
}

// choice is a switch that can be unset.
func choice(name string, p *Choice, safe Choice) key {
	set := func(s string) string {
		v, ok := parseSwitch(s)
		switch {
		case !ok:
			*p = safe
			return switchForm
		case v:
			*p = Yes
		default:
			*p = No
		}
		return ""
	}
	get := func() string {
		if *p == Unset {
			return ""
		}
		return yesNo(*p == Yes)
	}
	return key{name, set, get}
}

const switchForm = "must be yes or no"

func parseSwitch(s string) (v, ok bool) {
	for _, yes := range []string{"", "yes", "true", "on"} {
		if strings.EqualFold(s, yes) {
			return true, true
		}
	}
	for _, no := range []string{"no", "false", "off"} {
		if strings.EqualFold(s, no) {
			return false, true
		}
	}
	return false, false
}

func yesNo(v bool) string {
	if v {
		return "yes"
	}
	return "no"
}

// number is a key with a decimal number from low to high.
func number(name string, p *int, low, high int) key {
	set := func(s string) string {
		v, err := strconv.ParseUint(s, 10, 31)
		if err != nil || int(v) < low || int(v) > high {
			return "must be a number from " + strconv.Itoa(low) + " to " + strconv.Itoa(high)
		}
		*p = int(v)
		return ""
	}
	return key{name, set, func() string { return strconv.Itoa(*p) }}
}

// duration is a key with a time of at least low.
func duration(name string, p *time.Duration, low time.Duration) key {
	set := func(s string) string {
		v, err := ParseDuration(s)
		if err != nil || v < low {
			return "must be a time from " + FormatDuration(low) + " to " + FormatDuration(maxDuration) + ", like 90s, 5m, 3h, 5d or 1h30m"
		}
		*p = v
		return ""
	}
	return key{name, set, func() string { return FormatDuration(*p) }}
}

// space is a key with an amount of a file system.
func space(name string, p *Space) key {
	set := func(s string) string {
		v, ok := parseSpace(s)
		if !ok {
			return "must be a number of octets, with K, M, G or T if you like, or a share below 100%"
		}
		*p = v
		return ""
	}
	return key{name, set, func() string { return p.String() }}
}

const spaceUnits = "KMGT"

func parseSpace(s string) (Space, bool) {
	if rest, ok := strings.CutSuffix(s, "%"); ok {
		v, err := strconv.ParseUint(rest, 10, 31)
		return Space{Percent: int(v)}, err == nil && v < 100
	}
	shift := 0
	if s != "" {
		if i := strings.IndexByte(spaceUnits, s[len(s)-1]&^0x20); i >= 0 {
			s, shift = s[:len(s)-1], 10*(i+1)
		}
	}
	v, err := strconv.ParseUint(s, 10, 62)
	return Space{Bytes: int64(v << shift)}, err == nil && v <= (1<<62-1)>>shift
}

// String returns s as the file has it: "16M", "5%".
func (s Space) String() string {
	if s.Percent > 0 {
		return strconv.Itoa(s.Percent) + "%"
	}
	v, unit := s.Bytes, ""
	for i := 0; i < len(spaceUnits) && v != 0 && v%1024 == 0; i++ {
		v, unit = v/1024, spaceUnits[i:i+1]
	}
	return strconv.FormatInt(v, 10) + unit
}
