package smarthost

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"dma/internal/config"
)

// TLSLevel is what a connection must be before mail goes over it. The levels are
// those that Postfix has under the same names.
type TLSLevel uint8

// The levels. The zero TLSLevel is none of them, and lets nothing pass.
const (
	// TLSNone is clear text.
	TLSNone TLSLevel = iota + 1
	// TLSMay is TLS with any certificate where the peer offers it, else clear
	// text. Where TLS is offered and does not come about, the peer is connected
	// to again, in clear text. Where there are credentials it is TLSEncrypt.
	TLSMay
	// TLSEncrypt is TLS with any certificate.
	TLSEncrypt
	// TLSVerify is TLS with a valid certificate for the name of the host.
	TLSVerify
	// TLSFingerprint is TLS with one of the certificates that are named.
	TLSFingerprint
)

var levelNames = [...]string{TLSNone: "none", TLSMay: "may", TLSEncrypt: "encrypt", TLSVerify: "verify", TLSFingerprint: "fingerprint"}

// String returns the name of the level in a TLSPOLICY file.
func (l TLSLevel) String() string {
	if l == 0 || int(l) >= len(levelNames) {
		return fmt.Sprintf("tlslevel(%d)", uint8(l))
	}
	return levelNames[l]
}

// TLSStart is when TLS begins.
type TLSStart uint8

// The beginnings. The zero TLSStart is StartByPort.
const (
	StartByPort TLSStart = iota // at once on port 465 (RFC 8314), else STARTTLS
	StartTLS                    // after EHLO (RFC 3207)
	StartAtOnce                 // with the first octet
)

// Fingerprint is the SHA-256 of a certificate.
type Fingerprint [sha256.Size]byte

// String returns f in hexadecimal digits.
func (f Fingerprint) String() string { return hex.EncodeToString(f[:]) }

// TLSPolicy says how the connection to one destination is protected. What
// authenticates a peer in another way than a TLSVerify or a Fingerprint does, as
// DANE (RFC 7672) and MTA-STS (RFC 8461) do, is a level of its own, with its
// records in a field of its own.
type TLSPolicy struct {
	Level TLSLevel
	Start TLSStart

	// Fingerprints, if there are any, must have the peer's certificate, whatever
	// else Level asks for. TLSFingerprint needs one.
	Fingerprints []Fingerprint

	// Names, if there are any, are for which the certificate must be instead of
	// the name of the host: one of them is enough. ".example.org" is any name
	// below example.org.
	Names []string
}

// required reports whether nothing may go in clear text.
func (p *TLSPolicy) required() bool { return p.Level != TLSNone && p.Level != TLSMay }

// atOnce reports whether the connection to port begins with TLS.
func (p *TLSPolicy) atOnce(port int) bool {
	return p.Level != TLSNone && (p.Start == StartAtOnce || p.Start == StartByPort && port == 465)
}

// DefaultTLS is the policy where nothing is configured: TLSVerify where there are
// credentials, else TLSMay.
func DefaultTLS(_ Host, credentials bool) (TLSPolicy, error) {
	if credentials {
		return TLSPolicy{Level: TLSVerify}, nil
	}
	return TLSPolicy{Level: TLSMay}, nil
}

// KeysPolicy is the policy that the keys of C dma ask for. Where they contradict
// each other the stricter counts.
//
//   - FINGERPRINT: TLS with that certificate; with VERIFYCERT yes it must be valid
//     for the host too.
//   - VERIFYCERT yes: TLSVerify. VERIFYCERT no: never. VERIFYCERT unset: TLSVerify
//     where there are credentials.
//   - STARTTLS: at least TLSEncrypt, by that command; with OPPORTUNISTIC_TLS
//     TLSMay. SECURETRANSFER adds nothing to it.
//   - SECURETRANSFER alone: at least TLSEncrypt, at once. OPPORTUNISTIC_TLS changes
//     nothing: there is no offer to wait for.
//   - None of these, or OPPORTUNISTIC_TLS alone: TLSMay.
//
// INSECURE changes nothing.
func KeysPolicy(c *config.Config, credentials bool) TLSPolicy {
	p := TLSPolicy{Level: TLSMay}
	switch {
	case c.StartTLS:
		p.Start = StartTLS
	case c.SecureTransfer:
		p.Start = StartAtOnce
	}
	if p.Start == StartAtOnce || p.Start == StartTLS && !c.OpportunisticTLS {
		p.Level = TLSEncrypt
	}
	verify := c.VerifyCert == config.Yes
	if f, err := parseFingerprint(c.Fingerprint); err == nil {
		p.Level, p.Fingerprints = TLSFingerprint, []Fingerprint{f}
	} else {
		verify = verify || c.Fingerprint != "" || c.VerifyCert == config.Unset && credentials
	}
	if verify {
		p.Level = TLSVerify
	}
	return p
}
