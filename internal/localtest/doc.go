// Package localtest tests local delivery with Debian's programs: those that a
// mailbox is handed to (procmail, maildrop, vacation, dovecot-lda, Dovecot's LMTP),
// those that read the same mailbox (mutt, mailx, Dovecot), those that send (cron),
// and Postfix as the judge of aliases files. They come from package peertest, in a
// root of their own, with the set-id bits of their packages. dma is there in two
// ways: on a spool that one user serves alone, and as scripts/install has it for all
// users of a host.
package localtest
