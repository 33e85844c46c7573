// Package door is the second way into the queue: a unix socket over which the
// queue process takes a message from a caller who can't write into the spool.
//
// The program dma is setgid and writes into the spool itself. Where that bit
// has no effect (no_new_privs, a view of the file system that is read-only, a
// container without the spool) it hands the message to the process that serves
// the socket. That writes the file, as its own, in the caller's name. It also
// answers a user who asks for the queue or for a run of it.
//
// # Who is calling
//
// The server takes the caller's user id from the kernel (SO_PEERCRED and its
// like: the effective uid of the process that called connect), before it reads
// anything, and refuses who has none. No request has a field for it, nor for
// anything that only dma itself writes: ids, parents, kinds of recipients. The
// Received field is the server's own, and a content that would continue that
// field is refused.
//
// # Protocol
//
// The frames are those of package wire, without files, at most 64 KiB and an
// octet long. The first octet is the kind; lines end with a newline, values are
// encoded as in the spool (address.Encode). A connection has one request:
//
//	f                         is mail taken now?
//	m  sender VALUE           submission: the envelope; one line a key, each at
//	   body 8bit              most once, all but sender and recipients optional
//	   smtputf8
//	   ret FULL|HDRS
//	   envid VALUE
//	   recipients NUMBER
//	r  ADDRESS [notify=VALUE] [orcpt=VALUE]
//	                          the next recipients, a line each, in as many
//	                          frames as it takes; answered after the last one
//	d  octets                 the next content, without a Received field
//	c                         commit; answered when the message is on disk
//	l                         the caller's messages in the queue; for root and
//	                          the spool's owner all
//	q                         try everything that waits, now
//
// The answers:
//
//	i  ID MICROSECONDS        the id and time of arrival of a submission; its
//	                          content may come
//	e  octets                 an entry of the queue
//	o                         done
//	x  KIND text              refused; the connection ends. KIND is one octet:
//	                          d bad data, t trouble for now, p not permitted,
//	                          b busy: come again in a moment
//
// A client that goes before it has sent its commit leaves nothing. After that
// the message is committed whether it waits for the answer or not; a client to
// which the connection breaks then can't know.
//
// The package is linked into the small program that every submission starts; it
// needs no net.
package door
