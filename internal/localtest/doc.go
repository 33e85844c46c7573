// Package localtest tests local delivery with Debian's programs: those that a
// mailbox is handed to (procmail, maildrop, vacation, dovecot-lda), those that
// read the same mailbox (mutt, mailx, Dovecot), those that send (cron), and
// Postfix as the judge of aliases files. They come from package peertest, in a
// root of their own.
package localtest
