package smarthost

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"sync"
	"time"
)

// pki has the certificates of the tests: authorities, and what they have signed.
type pki struct {
	roots *x509.CertPool
	certs map[string]*tls.Certificate
}

// testPKI makes the certificates once: good, other (for another name), below (for
// a host below the domain of MX records), expired, early, selfsigned, untrusted,
// and client.
var testPKI = sync.OnceValue(func() *pki {
	p := &pki{roots: x509.NewCertPool(), certs: make(map[string]*tls.Certificate)}
	long := [2]int{1990, 2090} // the clock of a bubble begins in 2000
	trusted := newCertificate("trusted authority", nil, long, true)
	foreign := newCertificate("foreign authority", nil, long, true)
	p.roots.AddCert(trusted.Leaf)
	p.certs["good"] = newCertificate("relay.example", trusted, long, false)
	p.certs["other"] = newCertificate("other.example", trusted, long, false)
	p.certs["below"] = newCertificate("mx1.domain.example", trusted, long, false)
	p.certs["expired"] = newCertificate("relay.example", trusted, [2]int{1990, 1995}, false)
	p.certs["early"] = newCertificate("relay.example", trusted, [2]int{2080, 2090}, false)
	p.certs["selfsigned"] = newCertificate("relay.example", nil, long, false)
	p.certs["untrusted"] = newCertificate("relay.example", foreign, long, false)
	p.certs["client"] = newCertificate("client.example", trusted, long, false)
	return p
})

func newCertificate(name string, by *tls.Certificate, years [2]int, authority bool) *tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Date(years[0], 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(years[1], 1, 1, 0, 0, 0, 0, time.UTC),
		IsCA: authority, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if !authority {
		template.DNSNames = []string{name}
		template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	parent, signer := template, any(key)
	if by != nil {
		parent, signer = by.Leaf, by.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		panic(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// fingerprint is that of a certificate.
func (p *pki) fingerprint(name string) Fingerprint {
	return sha256.Sum256(p.certs[name].Leaf.Raw)
}

// pem returns a certificate and its key as a file has them.
func (p *pki) pem(name string) []byte {
	key, err := x509.MarshalPKCS8PrivateKey(p.certs[name].PrivateKey)
	if err != nil {
		panic(err)
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.certs[name].Certificate[0]})...)
}

// serverTLS is what a server has that shows the certificate of a name.
func serverTLS(name string) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{*testPKI().certs[name]}}
}
