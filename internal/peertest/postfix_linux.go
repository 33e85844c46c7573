package peertest

import (
	"os"
	"strings"
)

// StartPostfix makes the configuration of Postfix and starts it. main is what
// main.cf has besides the base; services are the lines of master.cf for network
// services, as "127.0.0.1:587 inet n - n - - smtpd" with their -o lines. Its
// log is the service's.
func (r *Root) StartPostfix(main, services string) *Service {
	r.T.Helper()
	r.Write("etc/postfix/main.cf", postfixBase(main)+main)
	r.Write("etc/postfix/master.cf", postfixServices+services)
	r.Write("etc/postfix/dynamicmaps.cf", r.Read("usr/share/postfix/dynamicmaps.cf"))
	r.postfixFolders() // once more, for a queue that was bound over the first
	return r.Start(r.Command("postfix", "start-fg"))
}

// postfixBase is the base of main.cf without the parameters that main sets, which
// each command of Postfix would warn of.
func postfixBase(main string) string {
	set := make(map[string]bool)
	for line := range strings.Lines(main) {
		name, _, _ := strings.Cut(line, "=")
		set[strings.TrimSpace(name)] = true
	}
	var base strings.Builder
	for line := range strings.Lines(postfixMain) {
		if name, _, _ := strings.Cut(line, "="); !set[strings.TrimSpace(name)] {
			base.WriteString(line)
		}
	}
	return base.String()
}

// postfixFolders makes the queue with the owners and modes that the installation
// of the package gives it.
func (r *Root) postfixFolders() {
	r.T.Helper()
	queue := "var/spool/postfix"
	for _, name := range []string{"active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private", "saved", "trace"} {
		r.check(os.MkdirAll(r.Path(queue, name), 0o700))
		r.Own(queue+"/"+name, "postfix", 0o700)
	}
	r.check(os.MkdirAll(r.Path(queue, "pid"), 0o755))
	for name, mode := range map[string]os.FileMode{"maildrop": 0o730, "public": 0o710} {
		r.check(os.MkdirAll(r.Path(queue, name), 0o700))
		r.check(os.Chown(r.Path(queue, name), postfixID, postdropID))
		r.check(os.Chmod(r.Path(queue, name), mode))
	}
	r.check(os.MkdirAll(r.Path("var/lib/postfix"), 0o755))
	r.Own("var/lib/postfix", "postfix", 0o700)
	for _, name := range []string{"postdrop", "postqueue"} {
		r.check(os.Chown(r.Path("usr/sbin", name), 0, postdropID))
		r.check(os.Chmod(r.Path("usr/sbin", name), 0o755|os.ModeSetgid))
	}
}

// The sendmail of the package may have been put aside for that of dma.
const postfixMain = `compatibility_level = 3.6
myhostname = smtp.example
mydestination = peer.example
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
alias_maps =
alias_database =
local_recipient_maps = proxy:unix:passwd.byname
home_mailbox = Maildir/
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
data_directory = /var/lib/postfix
queue_directory = /var/spool/postfix
shlib_directory = /usr/lib/postfix
mail_owner = postfix
setgid_group = postdrop
sendmail_path = /usr/sbin/postfix
newaliases_path = /usr/sbin/postfix
mailq_path = /usr/sbin/postfix
html_directory = no
readme_directory = no
manpage_directory = /usr/share/man
sample_directory = /etc/postfix
biff = no
maillog_file = /dev/stdout
maillog_file_prefixes = /var, /dev
smtpd_peername_lookup = no
message_size_limit = 30000000
mailbox_size_limit = 0
`

var postfixServices = strings.Join([]string{
	"pickup unix n - n 60 1 pickup",
	"cleanup unix n - n - 0 cleanup",
	"qmgr unix n - n 300 1 qmgr",
	"tlsmgr unix - - n 1000? 1 tlsmgr",
	"rewrite unix - - n - - trivial-rewrite",
	"bounce unix - - n - 0 bounce",
	"defer unix - - n - 0 bounce",
	"trace unix - - n - 0 bounce",
	"verify unix - - n - 1 verify",
	"flush unix n - n 1000? 0 flush",
	"proxymap unix - - n - - proxymap",
	"proxywrite unix - - n - 1 proxymap",
	"smtp unix - - n - - smtp",
	"relay unix - - n - - smtp",
	"showq unix n - n - - showq",
	"error unix - - n - - error",
	"retry unix - - n - - error",
	"discard unix - - n - - discard",
	"local unix - n n - - local",
	"virtual unix - n n - - virtual",
	"lmtp unix - - n - - lmtp",
	"anvil unix - - n - 1 anvil",
	"scache unix - - n - 1 scache",
	"postlog unix-dgram n - n - 1 postlogd",
	"",
}, "\n")
