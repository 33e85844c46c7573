// Package dsn builds delivery status notifications and holds the vocabulary
// that goes with them: the parameters NOTIFY, RET, ENVID and ORCPT of RFC 3461
// and the enhanced status codes of RFC 3463.
//
// A [Report] becomes a multipart/report message (RFC 6522) of three parts: a
// text for people, the message/delivery-status fields of RFC 3464, and the
// original message or its header. Addresses and headers in UTF-8 turn the
// parts into their message/global forms (RFC 6533).
//
// A report is a pure function of its Report value: building it again gives the
// same bytes, so that a report whose commit was cut off by a crash can be made
// again under the same id.
//
// Every value in a Report other than ReportingMTA, MessageID and From is taken
// as hostile. Whatever it holds, it stays inside its field, its line and its
// part.
package dsn
