// Package forward says where mail for a local name goes: through the aliases
// file and through a user's .forward.
//
// # Syntax
//
// Both files hold the same kind of entries, those of sendmail's aliases(5) and
// of Postfix' aliases(5) and local(8):
//
//	jim                   a name of this machine
//	jim@example.org       an address; also <jim@example.org>,
//	                      Jim <jim@example.org> and jim@example.org (Jim)
//	\jim                  the mailbox of jim; no alias and no .forward is asked
//	"|command args"       a command that gets the message on its standard input
//	/home/jim/mbox        a file in mbox format
//	/home/jim/Mail/       a Maildir, because of the slash at the end
//	/dev/null             nowhere: the message is done
//	:include:/path/file   the entries of that file
//	~/mbox                in a .forward: a path below the home directory
//
// Entries are separated by commas; in a .forward and an included file a line
// end separates too. An entry may stand in double quotes, and must where it
// has a comma, or a blank outside a command; a backslash in quotes takes the
// next character as it is. A # at the beginning of a line or after a blank or
// a comma, outside quotes, begins a comment. (jim#1@example.org is an
// address.) Line ends are LF or CRLF; the last line needs none.
//
// Quotes inside a command that is not itself in quotes vanish, as with
// sendmail and Postfix: |"cmd a" and "|cmd a" are the same.
//
// # What happens to mistakes
//
// A mistake in a .forward, and in a file that it includes, makes the mail of
// that user wait. A mistake in the aliases file makes the mail for that one
// alias wait. There is no error in this package that is final, with the one
// exception of [ErrNoUser].
package forward
