package peertest

import "os"

// StartDovecot starts Dovecot with a configuration that is added to the base:
// no protocols, users of /etc/dovecot/users (passwd-file format) with plain text
// passwords, /var/mail mailboxes, the log on stderr. Its log is the service's.
func (r *Root) StartDovecot(conf string) *Service {
	r.T.Helper()
	for _, dir := range []string{"run/dovecot", "var/lib/dovecot"} {
		r.check(os.MkdirAll(r.Path(dir), 0o755))
	}
	if !exists(r.Path("etc/dovecot/users")) {
		r.Write("etc/dovecot/users", "")
	}
	r.Write("etc/dovecot/dovecot.conf", dovecotBase+conf)
	return r.Start(r.Command("dovecot", "-F"))
}

const dovecotBase = `protocols =
log_path = /dev/stderr
ssl = no
listen = 127.0.0.1
auth_mechanisms = plain login cram-md5 scram-sha-256
auth_failure_delay = 0
auth_verbose = yes
mail_location = mbox:~/mail:INBOX=/var/mail/%n
service anvil {
  unix_listener anvil-auth-penalty { # no delays after failures
    mode = 0
  }
}
passdb {
  driver = passwd-file
  args = scheme=PLAIN username_format=%n /etc/dovecot/users
}
userdb {
  driver = passwd
  args = username_format=%n
}
`
