// Package maillog is the vocabulary of the log: one method of [Log] for each
// event, one line for each call. A line is the name of the event and key=value
// pairs in a fixed order, so that a log can be read with grep and awk:
//
//	2026-03-04T05:06:07.089Z info delivery id=01AB n=1 from=<a@b> to=<c@d> relay=local delay=0.12 delays=0.02/0/0.1 dsn=2.0.0 status=sent
//
// Addresses stand in angle brackets, the null sender is <>. Values that hold
// blanks, quotes or anything not printable are quoted as Go strings; nothing that
// a value holds can begin a new line or look like another pair. Keys whose value is
// not known are left out.
//
// Two handlers for log/slog write the lines: [NewHandler] to a file or terminal,
// [NewSyslogHandler] to the syslog socket.
package maillog

import (
	"context"
	"log/slog"
	"strconv"
	"strings"
	"time"
)

// The events. Each has a method of the same meaning.
const (
	EventStarted          = "started"           // a process has begun its work
	EventSandboxed        = "sandboxed"         // a process has given up what it does not need
	EventStopped          = "stopped"           // a process ends in good order
	EventSubmitted        = "submitted"         // a message was accepted from a user
	EventQueued           = "queued"            // a committed message is in the queue
	EventMoved            = "moved"             // a recipient went from one directory to another
	EventExpanded         = "expanded"          // an alias or .forward made a child message
	EventDelivery         = "delivery"          // how one attempt for one recipient ended
	EventBounced          = "bounced"           // a report to a sender is committed
	EventDoubleBounce     = "double-bounce"     // a report failed; postmaster gets one about it
	EventKept             = "kept"              // nobody can be told; a recipient stays in permfail for a person
	EventCorrupt          = "corrupt"           // a file cannot be understood and was put aside
	EventAliasProblem     = "alias-problem"     // a line of an aliases file, or of one that it includes, does not count
	EventConfigProblem    = "config-problem"    // a line of the configuration does not count
	EventForwardTrouble   = "forward-trouble"   // a .forward cannot be used; the mail waits
	EventFileSystem       = "file-system"       // the spool's file system weakens a promise
	EventRecovered        = "recovered"         // something that a crash left was put right
	EventCleaned          = "cleaned"           // an abandoned file was removed
	EventDiskLow          = "disk-low"          // too little space to accept mail
	EventWatchUnavailable = "watch-unavailable" // no file-system events; directories are polled
	EventWorkerTrouble    = "worker-trouble"    // a worker has failed and is started again
)

// Log writes the events. Its methods may be called from many goroutines; they
// report no errors, since a log that cannot be written must not stop mail.
type Log struct {
	l       *slog.Logger
	observe func(Delivery)
}

// New returns a Log that writes to l, or nowhere if l is nil.
func New(l *slog.Logger) *Log {
	if l == nil {
		l = slog.New(slog.DiscardHandler)
	}
	return &Log{l: l}
}

// Observed returns a Log like l that also tells f of every Delivery before it
// writes it.
func Observed(l *Log, f func(Delivery)) *Log {
	if first := l.observe; first != nil {
		second := f
		f = func(d Delivery) { first(d); second(d) }
	}
	return &Log{l: l.l, observe: f}
}

func (l *Log) info(event string, attrs ...slog.Attr)  { l.log(slog.LevelInfo, event, attrs) }
func (l *Log) warn(event string, attrs ...slog.Attr)  { l.log(slog.LevelWarn, event, attrs) }
func (l *Log) error(event string, attrs ...slog.Attr) { l.log(slog.LevelError, event, attrs) }

func (l *Log) log(level slog.Level, event string, attrs []slog.Attr) {
	l.l.LogAttrs(context.Background(), level, event, attrs...)
}

// Started says that a process of the given role works on spool.
func (l *Log) Started(role string, pid int, spool string) {
	l.info(EventStarted, slog.String("role", role), slog.Int("pid", pid), slog.String("spool", spool))
}

// Sandboxed says what a process of the given role has given up: a Report of
// package sandbox as one line.
func (l *Log) Sandboxed(role, report string) {
	l.info(EventSandboxed, slog.String("role", role), slog.String("report", report))
}

// Stopped says that the process ends in good order, and why.
func (l *Log) Stopped(role string, pid int, reason string) {
	l.info(EventStopped, slog.String("role", role), slog.Int("pid", pid), slog.String("reason", reason))
}

// Submitted says that the user uid handed in a message of size bytes. uid is what
// the kernel says, never the caller's word.
func (l *Log) Submitted(id, from string, uid int, size int64, recipients int) {
	l.info(EventSubmitted, slog.String("id", id), address("from", from), slog.Int("uid", uid),
		slog.Int64("size", size), slog.Int("recipients", recipients))
}

// Queued says that the queue process has taken up a committed message that the
// user uid handed in.
func (l *Log) Queued(id, from string, uid int, size int64, recipients int) {
	l.info(EventQueued, slog.String("id", id), address("from", from), slog.Int("uid", uid), slog.Int64("size", size), slog.Int("recipients", recipients))
}

// Moved says that recipient n went from one spool directory to another, and why
// if there is more to say than the directories do.
func (l *Log) Moved(id string, n int, recipient, from, to, reason string) {
	l.info(EventMoved, append([]slog.Attr{slog.String("id", id), slog.Int("n", n), address("recipient", recipient),
		slog.String("from", from), slog.String("to", to)}, optional("reason", reason)...)...)
}

// Expanded says that recipient n became the recipients of the message child.
func (l *Log) Expanded(id string, n int, recipient, child string, targets int) {
	l.info(EventExpanded, slog.String("id", id), slog.Int("n", n), address("recipient", recipient),
		slog.String("child", child), slog.Int("targets", targets))
}

// Bounced says that the report bounce about recipients of the message id was
// committed and goes to the address to.
func (l *Log) Bounced(id, bounce, to string, recipients int) {
	l.info(EventBounced, slog.String("id", id), slog.String("bounce", bounce), address("to", to), slog.Int("recipients", recipients))
}

// DoubleBounce says that the report id could not be delivered, and that the report
// bounce about it goes to the postmaster at the address to.
func (l *Log) DoubleBounce(id, bounce, to string) {
	l.warn(EventDoubleBounce, slog.String("id", id), slog.String("bounce", bounce), address("to", to))
}

// Kept says that recipient n stays in permfail until a person looks at it.
func (l *Log) Kept(id string, n int, recipient, reason string) {
	l.error(EventKept, slog.String("id", id), slog.Int("n", n), address("recipient", recipient), slog.String("reason", reason))
}

// Corrupt says that the file at path cannot be understood and now lies at kept.
func (l *Log) Corrupt(path, reason, kept string) {
	l.error(EventCorrupt, slog.String("path", path), slog.String("reason", reason), slog.String("kept", kept))
}

// AliasProblem says what is wrong with a line of an aliases file, or of a file that
// it includes. Lines count from 1.
func (l *Log) AliasProblem(file string, line int, text string) {
	l.warn(EventAliasProblem, slog.String("file", file), slog.Int("line", line), slog.String("problem", text))
}

// ConfigProblem says what is wrong with a line of a configuration file.
func (l *Log) ConfigProblem(file string, line int, text string) {
	l.warn(EventConfigProblem, slog.String("file", file), slog.Int("line", line), slog.String("problem", text))
}

// ForwardTrouble says why a user's .forward cannot be used. Mail for the user
// waits in tempfail.
func (l *Log) ForwardTrouble(user, path, reason string) {
	attrs := append([]slog.Attr{slog.String("user", user)}, optional("path", path)...)
	l.warn(EventForwardTrouble, append(attrs, slog.String("reason", reason))...)
}

// FileSystem warns of a property of the spool's file system.
func (l *Log) FileSystem(warning string) {
	l.warn(EventFileSystem, slog.String("warning", warning))
}

// Recovered says what was put right after a crash; id is that of the message.
func (l *Log) Recovered(id, what string) {
	l.info(EventRecovered, slog.String("id", id), slog.String("what", what))
}

// Cleaned says that an abandoned, uncommitted file was removed.
func (l *Log) Cleaned(name string) {
	l.info(EventCleaned, slog.String("name", name))
}

// DiskLow says that free bytes are left where floor are needed to accept mail.
func (l *Log) DiskLow(free, floor int64) {
	l.error(EventDiskLow, slog.Int64("free", free), slog.Int64("floor", floor))
}

// WatchUnavailable says why directories are polled.
func (l *Log) WatchUnavailable(reason string) {
	l.warn(EventWatchUnavailable, slog.String("reason", reason))
}

// WorkerTrouble says that the worker of the given role has failed.
func (l *Log) WorkerTrouble(role string, err error) {
	text := "unknown"
	if err != nil {
		text = err.Error()
	}
	l.error(EventWorkerTrouble, slog.String("role", role), slog.String("error", text))
}

// address returns an address in angle brackets.
func address(key, addr string) slog.Attr {
	return slog.String(key, "<"+strings.TrimSuffix(strings.TrimPrefix(addr, "<"), ">")+">")
}

// optional returns the attribute, or nothing for an empty value.
func optional(key, value string) []slog.Attr {
	if value == "" {
		return nil
	}
	return []slog.Attr{slog.String(key, value)}
}

// seconds writes d in seconds with at most three decimals. A clock that was set
// back shows as 0.
func seconds(d time.Duration) string {
	ms := max(d, 0).Milliseconds()
	return strconv.FormatFloat(float64(ms)/1000, 'f', -1, 64)
}
