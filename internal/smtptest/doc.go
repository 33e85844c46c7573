// Package smtptest has servers to send mail to, for tests and for
// demonstrations: a Sink takes mail properly and answers by address; a Scenario
// is a text that says, step by step, how a server misbehaves, and what is to
// become of each recipient.
package smtptest
