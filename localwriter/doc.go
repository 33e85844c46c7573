// Package localwriter puts a message where a local recipient reads it: at the
// end of an mbox file, into a Maildir, or into a command.
//
// # Mailboxes
//
// OpenMbox and OpenMaildir return a Session. Append hands it one message after
// the other, Commit makes all of them durable. A message counts as delivered
// only when the Commit that follows its Append returned nil; until then it is
// taken back where that can be done. So one fsync may cover many messages.
//
// A message whose Append or Commit failed, and one whose delivery may have been
// cut off by a kill or a power cut, is Suspect at the next attempt. Suspect
// messages come first in a session: what a power cut tore at the end of an mbox
// can be mended only while nothing stands behind it.
//
// # What is written
//
// The first header field is "X-Dma-Delivery: ID.N", the id of the message and
// the number of the recipient. It, the envelope sender, the time of arrival, the
// caller's trace fields and the content are all that goes in, so that the bytes
// written are a function of the message file and the recipient, and are
// recognised when they are met again.
//
// # Recovery in an mbox
//
// For a Suspect message the mailbox is searched, once a session, for From_ lines
// that an X-Dma-Delivery line follows. Then:
//
//   - it is there, byte by byte: it is already delivered. Its bytes are written
//     over themselves, so that the next fsync covers them even if an earlier one
//     failed and left them clean in memory only;
//   - it is there and differs only by lines that mail readers insert or replace
//     in the header (Status, X-UID and so on): already delivered;
//   - it is cut off at the end of the file, or zero bytes stand for blocks that
//     did not reach the disk: what is at the end of the file is cut away and the
//     message appended anew; with other mail behind it, the blocks are filled in
//     where they stand;
//   - it is cut off and other text follows, or somebody edited it: it stays as
//     it is, and the message is appended whole;
//   - it is not there: a last From_ line so short that it does not name the
//     message yet is cut away if it can be this message's, and zero bytes at the
//     end of the file behind a complete message are cut away too.
//
// # Locks
//
// As Debian policy 11.6 has it, fcntl(2) and then FILE.lock; with Mbox.Flock,
// flock(2) instead of fcntl, as the BSDs have it. The one is given back when the
// other is taken, so that nobody waits for long while holding one. Where the
// directory does not let us make FILE.lock, the kernel lock alone has to do, and
// where everybody can make one, that of a stranger does not count.
//
// # Errors
//
// Every error is an *Error. What is not known to be permanent is temporary; of
// mailboxes, nothing is permanent.
package localwriter
