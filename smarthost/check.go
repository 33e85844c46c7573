package smarthost

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"dma/internal/config"
	"dma/internal/mapfile"
)

// CheckCredentials says what is wrong with a file of credentials; command says that
// there is a command for passwords. group is the gid that may read the file besides
// its owner, -1 if none may.
func CheckCredentials(path string, command bool, group int) []config.Problem {
	f := mapfile.File{Path: path}
	data, _, err := f.Read()
	if err != nil {
		return []config.Problem{{File: path, Text: fmt.Sprintf("the logins cannot be read, and mail for all relays waits: %v; mend AUTHPATH or the file", reason(err))}}
	}
	_, problems := parseAuth(path, data, command)
	return append(problems, privateProblems(path, f.Info(), group, "the passwords")...)
}

// privateProblems says who else may read or write a file with a secret.
func privateProblems(path string, info fs.FileInfo, group int, what string) []config.Problem {
	perm := info.Mode().Perm()
	mode, whom := 0o600, "its group"
	if st, ok := info.Sys().(*syscall.Stat_t); ok && group >= 0 && int(st.Gid) == group {
		mode = 0o640
	}
	switch {
	case perm&0o006 != 0:
		whom = "everybody on this host"
	case perm&0o060&^fs.FileMode(mode) == 0:
		return nil
	}
	return []config.Problem{{File: path, Text: fmt.Sprintf("its mode is %04o: %s can read or change %s; chmod %04o %s", perm, whom, what, mode, path)}}
}

// CheckTLSPolicy says what is wrong with a TLSPOLICY file.
func CheckTLSPolicy(path string) []config.Problem {
	f := mapfile.File{Path: path}
	data, _, err := f.Read()
	if err != nil {
		return []config.Problem{{File: path, Text: fmt.Sprintf("the policies cannot be read, and mail for all relays waits: %v; mend TLSPOLICY or the file", reason(err))}}
	}
	_, problems := parsePolicies(path, data)
	return problems
}

// soon is how long before its end a certificate is a problem.
const soon = 14 * 24 * time.Hour

// CheckCertificate loads our own certificate and key. It returns the time when the
// certificate ends, zero if it cannot be loaded, and what is wrong. group is as for
// CheckCredentials.
func CheckCertificate(path string, group int, now time.Time) (until time.Time, problems []config.Problem) {
	bad := func(format string, args ...any) {
		problems = append(problems, config.Problem{File: path, Text: oneLine(fmt.Sprintf(format, args...))})
	}
	cert, err := loadCertificate(path)
	if err == nil && cert.Leaf == nil {
		cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0])
	}
	if err != nil {
		if inner := errors.Unwrap(err); inner != nil {
			err = inner
		}
		bad("our own certificate and its key cannot be loaded, and relays that ask for one get no mail: %v; put both into this file in PEM", reason(err))
		return time.Time{}, problems
	}
	const form = "2006-01-02 15:04 MST"
	from, until := cert.Leaf.NotBefore.UTC(), cert.Leaf.NotAfter.UTC()
	switch {
	case now.After(until):
		bad("our own certificate has expired on %s; renew it", until.Format(form))
	case now.Before(from):
		bad("our own certificate is not valid before %s; wait, or set the clock", from.Format(form))
	case now.Add(soon).After(until):
		bad("our own certificate expires on %s; renew it", until.Format(form))
	}
	if info, err := os.Stat(path); err == nil {
		problems = append(problems, privateProblems(path, info, group, "the key")...)
	}
	return until, problems
}
