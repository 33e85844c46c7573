package sendmail

import (
	"fmt"
	"path"
	"strconv"
	"strings"
)

// Mode is what a command line asks for.
type Mode uint8

// The modes. All but Submit are done by dma-runner.
const (
	Submit  Mode = iota // take a message from the standard input
	List                // -bp, mailq
	Flush               // -q
	Verify              // -bv
	Aliases             // -bi, -I, newaliases
	SMTP                // -bs
)

// Delivery is when a submitted message is to be delivered.
type Delivery uint8

// The deliveries.
const (
	Background Delivery = iota // now, without waiting for it
	Foreground                 // now, and wait
	QueueOnly                  // when the queue is run next
)

// Options is a command line that has been read.
type Options struct {
	Mode     Mode
	Delivery Delivery

	ReadRecipients bool // -t
	IgnoreDots     bool // -i
	Verbose        bool // -v

	Sender      string // -f, -r, as given
	HasSender   bool
	FullName    string // -F
	HasFullName bool

	Config string // -C, empty if not given

	Notify     string // -N in the form of RFC 3461, empty if not given
	Return     string // -R: FULL, HDRS or empty
	EnvelopeID string // -V in xtext, empty if not given

	Help     bool
	Operands []string // the arguments after the options
	Long     []string // options of -bp and mailq that begin with two hyphens, for dma-runner
}

// argument tells whether an option has an argument.
type argument uint8

const (
	none     argument = iota
	required          // "-fx" or "-f x"
	attached          // "-q" or "-q15m", never the next word
)

// option is an option of sendmail. A nil set takes the option without any
// effect.
type option struct {
	letter byte
	arg    argument
	what   string
	set    func(o *Options, arg string) error
}

// table has every option. It is sendmail's own, with what Postfix, Exim,
// OpenSMTPD and C dma added and programs came to use.
func table() []option {
	sender := func(o *Options, arg string) error {
		o.Sender, o.HasSender = arg, true
		return nil
	}
	const noEffect = "taken, without effect"
	return []option{
		{'A', required, "-Ac, -Am: which sendmail.cf; " + noEffect, nil},
		{'B', required, "8BITMIME or 7BIT: the type of the body, which dma sees for itself", setBody},
		{'C', required, "the configuration file", func(o *Options, arg string) error {
			if arg == "" {
				return usage("-C: a file name is missing")
			}
			o.Config = arg
			return nil
		}},
		{'D', none, "wait until the message has been tried, as -odi", func(o *Options, _ string) error {
			o.Delivery = Foreground
			return nil
		}},
		{'E', attached, noEffect, nil},
		{'F', required, "the sender's full name, for a From field that dma adds", func(o *Options, arg string) error {
			o.FullName, o.HasFullName = arg, true
			return nil
		}},
		{'G', none, "a gateway submits; " + noEffect, nil},
		{'I', none, "check the aliases, as newaliases", func(o *Options, _ string) error {
			o.Mode = Aliases
			return nil
		}},
		{'J', attached, noEffect, nil},
		{'L', required, "the name in the log; " + noEffect, nil},
		{'N', required, "never, or a list of success, failure, delay: when to report (NOTIFY of RFC 3461)", setNotify},
		{'O', required, "name=value: DeliveryMode and IgnoreDots count, others are taken without effect", setLongOption},
		{'R', required, "full or hdrs: what a report returns (RET of RFC 3461)", setReturn},
		{'S', none, noEffect, nil},
		{'U', none, "a first submission; " + noEffect, nil},
		{'V', required, "the envelope id (ENVID of RFC 3461)", setEnvelopeID},
		{'X', required, "a file for the traffic; " + noEffect, nil},
		{'b', required, "-bm submit, -bs SMTP on stdin, -bp as mailq, -bv verify addresses, -bi as newaliases, -bq queue only", setMode},
		{'c', none, noEffect, nil},
		{'d', attached, "a debug level; " + noEffect, nil},
		{'e', required, "how errors are reported: always on stderr and by exit status; " + noEffect, nil},
		{'f', required, "the envelope sender; <> or an empty one is the null sender", sender},
		{'h', required, "the hop count; " + noEffect, func(_ *Options, arg string) error {
			if _, err := strconv.ParseUint(arg, 10, 16); err != nil {
				return usage("-h %s: a hop count is a number", quote(arg))
			}
			return nil
		}},
		{'i', none, "a lone dot does not end the message", func(o *Options, _ string) error {
			o.IgnoreDots = true
			return nil
		}},
		{'m', none, "send to me too; always so", nil},
		{'n', none, "no aliases; " + noEffect, nil},
		{'o', required, "-oi as -i; -odb deliver in the background, -odi wait, -odq and -odd queue only; other letters are taken without effect", setShortOption},
		{'p', required, "the protocol of receipt; " + noEffect, nil},
		{'q', attached, "deliver the whole queue now; a time, -qI, -qR and -qS narrow nothing", func(o *Options, _ string) error {
			o.Mode = Flush
			return nil
		}},
		{'r', required, "as -f", sender},
		{'s', none, noEffect, nil},
		{'t', none, "recipients from To, Cc and Bcc, besides those in the arguments", func(o *Options, _ string) error {
			o.ReadRecipients = true
			return nil
		}},
		{'v', none, "say under which id the message was queued", func(o *Options, _ string) error {
			o.Verbose = true
			return nil
		}},
		{'x', none, noEffect, nil},
	}
}

func setBody(_ *Options, arg string) error {
	if !strings.EqualFold(arg, "8BITMIME") && !strings.EqualFold(arg, "7BIT") {
		return usage("-B %s: the body type is 8BITMIME or 7BIT", quote(arg))
	}
	return nil
}

func setMode(o *Options, arg string) error {
	switch arg {
	case "m":
		o.Mode = Submit
	case "q":
		o.Mode, o.Delivery = Submit, QueueOnly
	case "p":
		o.Mode = List
	case "s":
		o.Mode = SMTP
	case "v":
		o.Mode = Verify
	case "i":
		o.Mode = Aliases
	case "d", "D":
		return usage("-b%s: dma is no daemon; the service is dma-runner", arg)
	case "t":
		return usage("-bt: dma has no address test mode; -bv shows what becomes of an address")
	default:
		return usage("-b %s: unknown mode; known are -bm, -bs, -bp, -bv, -bi and -bq", quote(arg))
	}
	return nil
}

func setDelivery(o *Options, given, mode string) error {
	if mode == "" {
		return nil
	}
	switch mode[0] {
	case 'b':
		o.Delivery = Background
	case 'i':
		o.Delivery = Foreground
	case 'q', 'd':
		o.Delivery = QueueOnly
	default:
		return usage("%s: unknown delivery mode; known are b, i, q and d", quote(given))
	}
	return nil
}

func setShortOption(o *Options, arg string) error {
	switch {
	case arg == "":
		return usage("-o: the option is missing")
	case arg == "i":
		o.IgnoreDots = true
	case arg[0] == 'd':
		return setDelivery(o, "-o"+arg, arg[1:])
	}
	return nil
}

func setLongOption(o *Options, arg string) error {
	name, value, ok := strings.Cut(arg, "=")
	if !ok || name == "" {
		return usage("-O %s: the form is -O name=value", quote(arg))
	}
	switch strings.ToLower(name) {
	case "deliverymode":
		return setDelivery(o, "-O "+arg, value)
	case "ignoredots":
		o.IgnoreDots = value == "" || strings.IndexByte("tTyY1", value[0]) >= 0
	}
	return nil
}

// ParseOptions reads the arguments of a program that was called as name. The
// name decides the mode until an option says otherwise.
//
// The options end at the first argument that is none, or after "--". Sendmail
// itself does so, while GNU getopt would look for options among the recipients:
// then whoever can choose a recipient could choose an option. A later argument
// that begins with a hyphen is refused rather than taken for a recipient, since
// it can be meant either way; after "--" everything is a recipient.
func ParseOptions(name string, args []string) (*Options, error) {
	o := &Options{}
	switch path.Base(name) {
	case "mailq":
		o.Mode = List
	case "newaliases":
		o.Mode = Aliases
	}
	known := table()
	for len(args) > 0 {
		arg := args[0]
		switch {
		case arg == "--":
			o.Operands = args[1:]
			return o, o.check()
		case arg == "--help":
			o.Help = true
			args = args[1:]
			continue
		case o.Mode == List && strings.HasPrefix(arg, "--"):
			o.Long = append(o.Long, arg)
			args = args[1:]
			continue
		case len(arg) < 2 || arg[0] != '-':
			o.Operands = args
			for _, a := range args {
				if len(a) > 1 && a[0] == '-' {
					return nil, usage("%s after a recipient: options come first; write -- before a recipient that begins with a hyphen", quote(a))
				}
			}
			return o, o.check()
		}
		var err error
		if args, err = o.word(known, arg, args[1:]); err != nil {
			return nil, err
		}
	}
	return o, o.check()
}

// word reads the options of one argument and returns the arguments after it.
func (o *Options) word(known []option, arg string, rest []string) ([]string, error) {
	for i := 1; i < len(arg); i++ {
		opt := find(known, arg[i])
		if opt == nil {
			given := "-" + arg[i:i+1]
			if strings.HasPrefix(arg, "--") {
				given = arg
			}
			return nil, usage("unknown option %s; known are -%s, see %s --help", quote(given), letters(known), Name)
		}
		value, last := "", false
		switch opt.arg {
		case required:
			value, last = arg[i+1:], true
			if value == "" {
				if len(rest) == 0 {
					return nil, usage("-%c: its argument is missing", opt.letter)
				}
				value, rest = rest[0], rest[1:]
			}
		case attached:
			value, last = arg[i+1:], true
		}
		if opt.set != nil {
			if err := opt.set(o, value); err != nil {
				return nil, err
			}
		}
		if last {
			break
		}
	}
	return rest, nil
}

// check refuses what fits no mode.
func (o *Options) check() error {
	switch {
	case o.Help:
	case o.Mode == Verify && len(o.Operands) == 0:
		return usage("-bv: an address is missing")
	case (o.Mode == List || o.Mode == Flush) && len(o.Operands) > 0:
		return usage("%s: the queue takes no arguments; without -q, -bp and the name mailq it would be a recipient", quote(o.Operands[0]))
	case o.Mode == Submit && len(o.Operands) == 0 && !o.ReadRecipients:
		return usage("no recipients; name them as arguments, or give -t to take them from the message")
	}
	return nil
}

func find(known []option, letter byte) *option {
	for i := range known {
		if known[i].letter == letter {
			return &known[i]
		}
	}
	return nil
}

func letters(known []option) string {
	var b strings.Builder
	for _, opt := range known {
		b.WriteByte(opt.letter)
	}
	return b.String()
}

// help describes the options, one a line.
func help() string {
	var b strings.Builder
	b.WriteString("usage: dma [option ...] [--] [recipient ...] <message\n" +
		"       mailq, newaliases\n\noptions:\n")
	for _, opt := range table() {
		arg := ""
		switch opt.arg {
		case required:
			arg = " arg"
		case attached:
			arg = "[arg]"
		}
		fmt.Fprintf(&b, "  -%-7s%s\n", string(opt.letter)+arg, opt.what)
	}
	return b.String()
}
