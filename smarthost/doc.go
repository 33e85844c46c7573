// Package smarthost hands messages to other hosts by SMTP (RFC 5321): routing,
// sessions, transactions, and what each reply means for each recipient.
//
// A Router finds the next hop of each recipient: the relay of the sender, the
// smarthost, or the hosts that the MX records of the recipient's domain name.
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
// # What the DNS means
//
// MX are tried by preference, equal ones in random order; a domain without MX
// stands for itself. It is final for the mail to a domain (but never for mail to a
// smarthost) that the domain does not exist, 5.1.2; that it has a null MX (RFC
// 7505), 5.1.10; and that this host itself is its best MX, by name or address,
// 5.4.6. All other trouble is temporary, 4.4.3: a server that fails, MX whose
// addresses nobody knows. IPv4 and IPv6 are raced (RFC 8305). That there is no
// address counts only where both families were answered.
//
// A host that wants a login or TLS first (530, 534, 535, 538) says something about
// our configuration: that is temporary too, wherever it says it.
//
// # TLS and AUTH
//
// A TLSPolicy says for each destination whether TLS is a must and what is asked of
// the certificate. Where that cannot be had, nothing goes in clear text: the next
// host has its turn, and if there is none the mail waits. Only TLSMay goes on in
// clear text: at once where STARTTLS is not offered or refused, on a new connection
// where TLS was begun and failed. Where there are credentials for a host even that
// does not, and the host gets no mail unless it takes the login. TLS 1.2 is the
// least. The EHLO before TLS says the same name as the one after it.
//
// Of the mechanisms that a host offers the strongest is taken; the next one has its
// turn only if the host says that the mechanism will not do (504, 534). A login that
// is refused is temporary; it is not tried again at any address for 5 minutes, then
// longer, up to an hour, unless the file with the credentials changes. Nothing that
// is returned or logged holds a secret, also when the host repeats it in its reply.
//
// # Content on the wire
//
// A peer that does not offer 8BITMIME gets 7-bit bodies (RFC 6152): each part
// with octets above 0x7f is encoded by itself, text as quoted-printable, all else
// as base64, and labelled so; what has no label becomes text/plain with the charset
// unknown-8bit. What is signed is not touched: it fails for good with 5.6.3, and so
// do parts that are encoded already and hold such octets, and a structure that
// cannot be read. Headers, and what stands around the parts of a multipart, are
// sent as they are: no encoding is for them, and such hosts take the octets.
//
// Lines end with CRLF, whether they ended with LF or CRLF; content without a
// final line end gets one. A CR that no LF follows becomes a space: it is no
// line end, and some hosts would take it for one. Lines longer than 998 octets
// are broken: in the header before white space, so that it is a folded line, else
// with CRLF and a space; in the body after a space if there is one, else where
// 998 octets are reached, but in no case inside a UTF-8 character. Nothing is left
// out. NUL octets are sent as they are, and the peer judges them.
package smarthost
