// Package spooldir keeps mail in a directory. The file system is the state
// machine: a recipient's state is the directory that its name stands in, a
// step is one rename(2), and whoever wants to know the queue lists it.
//
// # Directories
//
// A spool has these directories, all on one file system:
//
//	tmp         a submitter writes here; nothing in it is mail yet
//	new         committed, and nobody has looked at it
//	forwarding  a local user whose .forward has to be read
//	local       to be written to a mailbox or file, or given to a command
//	remote      to be handed to another host
//	tempfail    waits for its next attempt
//	hold        parked by the administrator
//	permfail    failed for good; its bounce is not committed yet
//	sent        done; its final line is not logged yet
//	corrupt     cannot be a message; kept for a person
//	log         one journal a message
//	lock        one lock file a role: queue, net, and parent where these are
//	            separated; logins, which relays have refused
//
// A spool belongs to one uid, which serves it and alone submits to it (Init), or
// it is shared: every user submits to it by a setgid program, and the queue
// process and the net process serve it as two users without privilege
// (InitShared). Then the owners and modes of Layout let each process make its
// own steps and no others. The net process cannot open the directories that it
// moves names to, and syncs by the one that they have left (NewSyncerFrom).
//
// The file ballast in the spool is room to be given up when the disk is full,
// the file .flush in tempfail a request to try everything now. Names that
// begin with a dot are no recipients.
//
// # Names
//
// A message is one file. Each recipient is one hard link to it, named
//
//	<id>.<n>-<address>
//
// The id of a message is its time of arrival in UTC, YYYYMMDDThhmmss, a hyphen
// and 16 lower-case hexadecimal digits: 64 random bits. Ids never repeat. A
// message that dma itself made has one letter more: c a child (the expansion
// of a recipient by an alias or .forward), b a bounce, s a success report,
// d a delay notice. Such an id is derived: its time is that of the parent's id,
// its digits are the first 8 octets of
//
//	SHA-256("<parent's id>.<parent's recipient number><letter>")
//
// n is the number of the recipient in the envelope, from 1, without leading
// zeros, and is what a program reads. The address is for people: letters,
// digits and @._+=- stand, every other octet is %XX, and it is cut (never
// within a %XX) so that the name has at most 255 octets. For a local user or
// mailbox the user name stands there, for a file USER=PATH, for a command
// USER=|COMMAND.
//
// # Message file
//
// A message file is an envelope, lines of text that end with a newline, then
// the content: an RFC 5322 message as it was submitted, with newlines for line
// ends. The first line is
//
//	dma-message 1 crc32=HHHHHHHH size=NNNNNNNNNN
//
// size is the length of the envelope, from the first octet of the file to the
// empty line that ends it, in 10 decimal digits. crc32 is the CRC-32
// of gzip and zlib, in 8 lower-case hexadecimal digits, of all that follows it in
// the envelope, from the blank before "size" to the newline of the empty line.
// Then come, in any order but each at most once unless it says otherwise:
//
//	id ID                    the id, which has to be that of the file's name
//	content LENGTH crc32=H   length of the content in 20 decimal digits, and its CRC-32
//	arrival SECONDS.MICROS   time of arrival since 1970, six digits of microseconds
//	sender ADDRESS           envelope sender; nothing after the blank: the null sender
//	uid NUMBER               who submitted it; -1 if that is not known
//	body 8bit                the content has octets above 127 (optional)
//	smtputf8                 an address or header field has (optional)
//	ret FULL|HDRS            RFC 3461 RET (optional)
//	envid XTEXT              RFC 3461 ENVID (optional)
//	depth NUMBER             expansions that led to this message (optional, 0)
//	parent NAME              file name of a recipient whose step this message
//	                         finishes; any number, and only in messages of dma's own
//	recipients NUMBER        how many "to" lines follow; stands before them
//	to N KIND KEY=VALUE ...  recipient N, in ascending order without a gap
//
// The kinds of recipient are address, user (a local user; aliases have been
// applied), mailbox (neither aliases nor .forward apply), file and command. The
// keys are address (always; for the local kinds the address whose expansion
// named it), user, detail (of user+detail), target (the path or command line), source ("forward" or
// "aliases": who lists the target), original (the address as submitted), notify
// and orcpt (RFC 3461). All but address stand only in children.
//
// Values are encoded: octets from 0x21 to 0x7e other than % stand, every other
// one is %XX with upper-case digits. So no value holds a blank or a newline. A
// control character (an octet below 0x20, or 0x7f) can be written so and is
// nevertheless an error in every value, but for a tab in a target: no door takes
// one, and mailboxes, sessions and reports are made of lines.
//
// An empty line ends the envelope. The length of the file is size + LENGTH. A
// committed file for which any of this does not hold goes to corrupt. What only
// dma makes (parents, kinds other than address) is believed only in a file that
// the owner of the spool owns.
//
// # Commit
//
// A file is mail when its mode is 0640. While it is written the mode is 0600, or
// 0620 while its submitter holds flock(2) on it; more exactly, a file without the
// group's read bit is uncommitted, and a mode that is neither is corrupt. The
// sequence is:
//
//  1. create tmp/<id> with O_EXCL and mode 0600, lock it and say so with the mode,
//     and write it;
//  2. link(2) it to the names of all recipients in new, and unlink tmp/<id>;
//  3. fsync: content and names are on disk; then the mode 0600 again, and no lock,
//     so that nobody has to wait for a submitter who is stopped;
//  4. chmod("new/<first name>", 0640), by path, so that whoever watches new is
//     told, and by no link: all names share the inode, and are committed at once;
//  5. fsync: the commitment is on disk. Now the submitter may report success.
//
// A failed fsync is never repeated (the second one says nil, and the data is
// gone): the names are removed and the submission failed. A submitter that dies
// leaves uncommitted names; Clean removes at once those that have the mode 0620 and
// that nobody holds (on ext4, xfs, btrfs and tmpfs, whose locks every process of the
// machine sees), and all others after a day.
//
// # Journal
//
// log/<id> is the journal of a message, one line an event:
//
//	SECONDS.MICROS EVENT RECIPIENTS [KEY=VALUE ...] #CRC32
//
// RECIPIENTS is a list of numbers and ranges in ascending order, "1-3,7", or
// "-" for the message as a whole. The keys are status (RFC 3463), relay, reply
// (encoded as in the envelope), next (when the recipients are due again), dsn
// (relayed: somebody else reports to the sender from here on) and owner (of
// queued: the uid that owns the message file; a file of another uid under the
// same id is another message, and goes to corrupt). The checksum is over the
// line up to the blank before #. A line that is cut or whose checksum is wrong
// says nothing. Events: queued, expanded, delivered, deferred, refused (due, and
// held back by a destination's back-off), failed, noticed (a delay notice was
// committed), bounced, reported (a success report was committed), kept. Only
// delivered binds: whoever takes up a recipient that such a line lists moves it
// to sent. Bounced and reported keep a sender from being told twice. Everything
// else is history, and losing a journal loses no mail.
//
// The mtime of a journal is the earliest time at which a recipient of the
// message in tempfail is due.
//
// # Moving
//
// A name moves with renameat2(RENAME_NOREPLACE), or link and unlink where that
// is missing: plain rename onto another link of the same file does nothing and
// says yes. If a name stands in two directories, the further one of
//
//	new < forwarding < local = remote < tempfail < hold < permfail < sent
//
// stays; another file under the same name goes to corrupt. A name that vanishes
// is normal: somebody moved or removed it. Which steps there are, and who makes
// them, is the table of package states.
//
// Claims (new to local, say) need no sync: undone, they repeat work. Outcomes
// are synced in groups. Where one reply decides several recipients, the outcome
// is first one synced line in the journal.
//
// flock(2) on the inode of a message is held by the queue process while it
// moves several names of it, and by whoever gathers the names of one message
// that stand in a directory. Whoever has the file open can hold it, for ever: so
// nobody waits for a lock that another process holds (ErrBusy). Such a message stays
// where it is, and is looked at again; others go on.
package spooldir
