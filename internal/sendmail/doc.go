// Package sendmail is what the command dma does, also under its names
// sendmail, send-mail, mailq and newaliases: it reads a message and hands it
// to the queue, or it hands its task over to dma-runner.
//
// It is linked into the setgid program that is started once for each message.
// So it trusts nothing of its caller: arguments, environment, descriptors,
// limits and signals are the caller's. And it stays small: no package that
// speaks to a network, a log or the C library's databases.
//
// # Input
//
// The message is read to the end of the input, or to a line with a lone dot
// unless -i is given. It can have any octets and lines of any length; what goes
// into the queue differs from it only in this:
//
//   - An input whose lines all end in CRLF gets LF. In a mixed one the body
//     stays as it is, and only the lines of the header get LF.
//   - A "From " or ">From " line at the very beginning is dropped if it is the
//     separator of an mbox: it has a date, or header fields follow.
//   - The header ends at the first empty line. A line that is no header field
//     ends it too, and then the line belongs to the body and an empty line is
//     put between; so text without a header is all body.
//   - Bcc, Resent-Bcc and Return-Path go, missing fields come, bare names in
//     address fields get the host's mail name; see header.go and qualify.go.
//
// A header of more than 16 MiB is refused. The body has no limit but the disk:
// beyond 1 MiB it waits in an unlinked file in the spool.
//
// # Envelope
//
// The sender is that of -f or -r; without them the address in $EMAIL, as C dma
// has it, if it is one; else the calling user at the host's mail name. The
// recipients are the arguments, each an address list, and with -t those of To,
// Cc and Bcc, or of Resent-To, Resent-Cc and Resent-Bcc where the header has a
// Resent- field. Duplicates collapse.
//
// # Exit status
//
//	0   the message is safe on disk; or the task that was asked for is done
//	64  the command line is wrong, or there is no recipient and no -t
//	65  the message or an address is refused
//	66  -t has found no recipient
//	75  anything else: no way into the queue, no space, an interrupt
//	78  the file of -C cannot be read
//
// dma-runner's own status comes back from what it takes over.
package sendmail
