// Package smarthost hands messages to other hosts by SMTP (RFC 5321): routing,
// sessions, transactions, and what each reply means for each recipient.
//
// A Relay is one destination: a list of hosts that stand in for each other. It
// keeps sessions open for the next message, opens no more than it may, and
// leaves a destination that is down alone for a while. A Session is one
// connection; it carries one transaction after another. A transaction has all
// recipients of a message, and where the peer offers PIPELINING (RFC 2920) the
// commands MAIL, RCPT and DATA go out together: greeting, EHLO, commands and
// content are four round trips, for one recipient and for hundreds.
//
// # What a reply means
//
// Every recipient of a message gets exactly one Outcome. RCPT sorts it: 2xx
// shares the reply to the content, 4xx is tried later, 5xx has failed; 552 is
// temporary there, as RFC 5321 section 4.5.3.1.10 asks. When 452 or 552 says
// that there are too many recipients, these go into the next transaction. A
// refused MAIL, DATA or content decides for all whom nothing decided before. A
// code that is unknown counts by its first digit (section 4.2.1); a reply in the
// wrong place, a reply that cannot be read, 421, silence and a lost connection
// are temporary for every recipient without a final answer. So is a greeting
// or a HELO that is refused, with 4xx or 5xx: that is trouble between the two
// hosts and no verdict on a message.
//
// # Content on the wire
//
// Lines end with CRLF, whether they ended with LF or CRLF; content without a
// final line end gets one. A CR that no LF follows becomes a space: it is no
// line end, and some hosts would take it for one. Lines longer than 998 octets
// are broken: in the header before white space, so that it is a folded line, else
// with CRLF and a space; in the body after a space if there is one, else where
// 998 octets are reached, but in no case inside a UTF-8 character. Nothing is left
// out. NUL octets are sent as they are, and the peer judges them.
package smarthost
