package sendmail

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

// TestPrograms has the command lines of programs that send mail.
func TestPrograms(t *testing.T) {
	from := func(o Options, addr string) Options {
		o.Sender, o.HasSender = addr, true
		return o
	}
	to := func(operands ...string) Options { return Options{Operands: operands} }
	mod := func(o Options, f func(*Options)) Options { f(&o); return o }
	for _, tt := range []struct {
		line string
		want Options
	}{
		{"sendmail root", to("root")},
		{"sendmail -i -FCronDaemon -B8BITMIME -oem root", mod(to("root"), func(o *Options) { // cron
			o.IgnoreDots, o.FullName, o.HasFullName = true, "CronDaemon", true
		})},
		{"/usr/sbin/sendmail -FCronDaemon -i -odi -oem -oi -t -f root", mod(from(Options{}, "root"), func(o *Options) { // cronie
			o.IgnoreDots, o.FullName, o.HasFullName = true, "CronDaemon", true
			o.Delivery, o.ReadRecipients = Foreground, true
		})},
		{"sendmail -t -i", Options{ReadRecipients: true, IgnoreDots: true}}, // PHP
		{"sendmail -ti", Options{ReadRecipients: true, IgnoreDots: true}},   // one word
		{"sendmail -oi -t -f a@b", mod(from(Options{}, "a@b"), func(o *Options) { // Mail::Mailer
			o.IgnoreDots, o.ReadRecipients = true, true
		})},
		{"sendmail -oem -oi -f a@b -- c@d -e@f", mod(from(to("c@d", "-e@f"), "a@b"), func(o *Options) { // mutt
			o.IgnoreDots = true
		})},
		{"send-mail -i -N failure,delay -R hdrs -V id+1 bob", mod(to("bob"), func(o *Options) {
			o.IgnoreDots, o.Notify, o.Return, o.EnvelopeID = true, "FAILURE,DELAY", "HDRS", "id+2B1"
		})},
		{"sendmail -N never -bm x", mod(to("x"), func(o *Options) { o.Notify = "NEVER" })},
		{"sendmail -r a@b -odq c", mod(from(to("c"), "a@b"), func(o *Options) { o.Delivery = QueueOnly })},
		{"sendmail -odd c", mod(to("c"), func(o *Options) { o.Delivery = QueueOnly })},
		{"sendmail -odb c", to("c")},
		{"sendmail -bq c", mod(to("c"), func(o *Options) { o.Delivery = QueueOnly })},
		{"sendmail -D c", mod(to("c"), func(o *Options) { o.Delivery = Foreground })},
		{"sendmail -O DeliveryMode=interactive -O IgnoreDots=True -OQueueDirectory=/x c", mod(to("c"), func(o *Options) {
			o.Delivery, o.IgnoreDots = Foreground, true
		})},
		{"sendmail -Am -G -U -n -m -s -x -em -L tag -X /log -h 3 -p ESMTP:h -d9 -J c", to("c")},
		{"sendmail -oMrESMTP -oQ/tmp -oAfile c", to("c")},
		{"sendmail -v -C /x/y.conf c", mod(to("c"), func(o *Options) { o.Verbose, o.Config = true, "/x/y.conf" })},
		{"sendmail -q", Options{Mode: Flush}},
		{"sendmail -q30m", Options{Mode: Flush}},
		{"sendmail -qRexample.org -v", Options{Mode: Flush, Verbose: true}},
		{"sendmail -bp", Options{Mode: List}},
		{"sendmail -bp --json", Options{Mode: List, Long: []string{"--json"}}},
		{"/usr/bin/mailq", Options{Mode: List}},
		{"mailq --json", Options{Mode: List, Long: []string{"--json"}}},
		{"newaliases", Options{Mode: Aliases}},
		{"sendmail -bi", Options{Mode: Aliases}},
		{"sendmail -I", Options{Mode: Aliases}},
		{"sendmail -bs", Options{Mode: SMTP}},
		{"sendmail -bv root bob", Options{Mode: Verify, Operands: []string{"root", "bob"}}},
		{"sendmail --help", Options{Help: true}},
		{"sendmail -", to("-")},
	} {
		words := strings.Fields(tt.line)
		o, err := ParseOptions(words[0], words[1:])
		if err != nil {
			t.Errorf("%s: %v", tt.line, err)
			continue
		}
		if len(o.Operands) == 0 {
			o.Operands = nil
		}
		if !reflect.DeepEqual(*o, tt.want) {
			t.Errorf("%s:\n got %+v\nwant %+v", tt.line, *o, tt.want)
		}
	}
}

// TestUsage has command lines that are refused, each with its message.
func TestUsage(t *testing.T) {
	const known = "known are -ABCDEFGIJLNORSUVXbcdefhimnopqrstvx, see dma --help"
	for _, tt := range []struct{ line, want string }{
		{"", "no recipients; name them as arguments, or give -t to take them from the message"},
		{"-i", "no recipients; name them as arguments, or give -t to take them from the message"},
		{"-Z x", `unknown option "-Z"; ` + known},
		{"-iZ x", `unknown option "-Z"; ` + known},
		{"--frob x", `unknown option "--frob"; ` + known},
		{"-\xff x", `unknown option "-\xff"; ` + known},
		{"x -t", `"-t" after a recipient: options come first; write -- before a recipient that begins with a hyphen`},
		{"-f", "-f: its argument is missing"},
		{"-bd -q15m", "-bd: dma is no daemon; the service is dma-runner"},
		{"-bt", "-bt: dma has no address test mode; -bv shows what becomes of an address"},
		{"-bz", `-b "z": unknown mode; known are -bm, -bs, -bp, -bv, -bi and -bq`},
		{"-bv", "-bv: an address is missing"},
		{"-bp x", `"x": the queue takes no arguments; without -q, -bp and the name mailq it would be a recipient`},
		{"-q games", `"games": the queue takes no arguments; without -q, -bp and the name mailq it would be a recipient`},
		{"-odx y", `"-odx": unknown delivery mode; known are b, i, q and d`},
		{"-O DeliveryMode=x y", `"-O DeliveryMode=x": unknown delivery mode; known are b, i, q and d`},
		{"-O foo y", `-O "foo": the form is -O name=value`},
		{"-B9BIT y", `-B "9BIT": the body type is 8BITMIME or 7BIT`},
		{"-h many y", `-h "many": a hop count is a number`},
		{"-N never,delay y", `-N "never,delay": it is never, or a list of success, failure and delay`},
		{"-N often y", `-N "often": it is never, or a list of success, failure and delay`},
		{"-R none y", `-R "none": it is full or hdrs`},
		{"-V \x07 y", `-V "\a": an envelope id has printable ASCII only`},
		{"-V " + strings.Repeat("=", 34) + " y", `-V "` + strings.Repeat("=", 34) + `": an envelope id has 1 to 100 characters, blanks and + and = count as three`},
	} {
		_, err := ParseOptions("sendmail", strings.Fields(tt.line))
		if err == nil {
			t.Errorf("%s: accepted", tt.line)
			continue
		}
		if status(err) != 64 || err.Error() != tt.want {
			t.Errorf("%s:\n got %d %s\nwant 64 %s", tt.line, status(err), err, tt.want)
		}
	}
	if _, err := ParseOptions("sendmail", []string{"-C", "", "x"}); status(err) != 64 {
		t.Errorf("-C with an empty name: %v", err)
	}
}

// TestTable makes sure that each option stands once, in order, with a word on
// what it does.
func TestTable(t *testing.T) {
	last := byte(0)
	for _, opt := range table() {
		if opt.letter <= last || opt.what == "" {
			t.Errorf("option %c", opt.letter)
		}
		last = opt.letter
		if !strings.Contains(help(), "  -"+string(opt.letter)) {
			t.Errorf("option %c is not in the help", opt.letter)
		}
	}
}

// FuzzOptions: what is accepted needs no option to be guessed, and operands
// are the end of the arguments.
func FuzzOptions(f *testing.F) {
	for _, s := range []string{"-t", "-f\x00a@b\x00--\x00-x", "-oi\x00root", "-q15m", "-bp\x00--json", "-N\x00never\x00x", "x\x00-t", "-", "--", "--help"} {
		f.Add("sendmail", s)
	}
	f.Add("mailq", "")
	f.Fuzz(func(t *testing.T, name, line string) {
		args := strings.Split(line, "\x00")
		o, err := ParseOptions(name, args)
		if err != nil {
			if status(err) != exitUsage {
				t.Fatalf("status %d for a command line", status(err))
			}
			return
		}
		if n := len(args) - len(o.Operands); !slices.Equal(args[n:], o.Operands) {
			t.Fatalf("operands %q of %q", o.Operands, args)
		} else if !slices.Contains(args[:n], "--") {
			for _, a := range o.Operands {
				if len(a) > 1 && a[0] == '-' {
					t.Fatalf("%q is an operand without --", a)
				}
			}
		}
		if o.Mode == Submit && !o.Help && len(o.Operands) == 0 && !o.ReadRecipients {
			t.Fatal("a submission without recipients")
		}
	})
}
