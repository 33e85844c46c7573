package smtptest

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
)

// DNS is a name server on loopback, for UDP.
type DNS struct {
	conn net.PacketConn
	zone map[string][]string
	done sync.WaitGroup

	mu    sync.Mutex
	asked []string
}

// Types and codes of RFC 1035 and RFC 3596.
const (
	typeA, typeCNAME, typeMX, typeAAAA = 1, 5, 15, 28
	rcodeFailure, rcodeNoName          = 2, 3
)

// NewDNS starts a name server. zone has the records of each name, in lower case
// and without its last dot: "A 192.0.2.1", "AAAA 2001:db8::1", "MX 10 host",
// "CNAME host"; or one of the words SERVFAIL and SILENT, for every question about
// it, or "SERVFAIL A", "SERVFAIL AAAA", "SERVFAIL MX", for one. A name that is not there does not exist; one without records is empty.
// Close ends it.
func NewDNS(zone map[string][]string) (*DNS, error) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	d := &DNS{conn: conn, zone: zone}
	d.done.Go(d.serve)
	return d, nil
}

// Addr is where it listens, host:port.
func (d *DNS) Addr() string { return d.conn.LocalAddr().String() }

// Close ends the server.
func (d *DNS) Close() {
	_ = d.conn.Close()
	d.done.Wait()
}

// Asked returns the questions so far, as "MX example.org".
func (d *DNS) Asked() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string(nil), d.asked...)
}

func (d *DNS) serve() {
	buf := make([]byte, 1500)
	for {
		n, from, err := d.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		if answer := d.answer(buf[:n]); answer != nil {
			_, _ = d.conn.WriteTo(answer, from)
		}
	}
}

// answer returns the reply to a query, nil for none.
func (d *DNS) answer(query []byte) []byte {
	name, kind, end, ok := question(query)
	if !ok {
		return nil
	}
	word := map[uint16]string{typeA: "A", typeAAAA: "AAAA", typeMX: "MX"}[kind]
	d.mu.Lock()
	d.asked = append(d.asked, word+" "+name)
	d.mu.Unlock()

	out := append([]byte(nil), query[:end]...)
	copy(out[2:12], []byte{0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}) // a recursive reply to one question
	records, known := d.zone[name]
	count := 0
	add := func(owner string, kind uint16, data []byte) {
		out = append(out, wireName(owner)...)
		out = binary.BigEndian.AppendUint16(out, kind)
		out = append(out, 0, 1, 0, 0, 0, 60) // class IN, a minute
		out = binary.BigEndian.AppendUint16(out, uint16(len(data)))
		out = append(out, data...)
		count++
	}
	for i := 0; i < len(records); i++ {
		typ, value, _ := strings.Cut(records[i], " ")
		switch {
		case typ == "SILENT":
			return nil
		case typ == "SERVFAIL":
			if value == "" || value == word {
				out[3] |= rcodeFailure
			}
		case typ == "CNAME" && count < 8:
			add(name, typeCNAME, wireName(value))
			name, records, i = value, d.zone[value], -1
		case typ != word:
		case typ == "MX":
			var pref uint16
			var host string
			if _, err := fmt.Sscan(value, &pref, &host); err != nil {
				panic("smtptest: MX " + value)
			}
			add(name, typeMX, append(binary.BigEndian.AppendUint16(nil, pref), wireName(host)...))
		default:
			add(name, kind, netip.MustParseAddr(value).AsSlice())
		}
	}
	if !known {
		out[3] |= rcodeNoName
	}
	out[7] = byte(count)
	return out
}

// question returns the name and type of the one question of a query, and where it
// ends.
func question(query []byte) (name string, kind uint16, end int, ok bool) {
	if len(query) < 12 || query[2]&0x80 != 0 || binary.BigEndian.Uint16(query[4:]) != 1 {
		return "", 0, 0, false
	}
	var labels []string
	i := 12
	for i < len(query) && query[i] != 0 {
		n := int(query[i])
		if n > 63 || i+1+n >= len(query) {
			return "", 0, 0, false
		}
		labels = append(labels, strings.ToLower(string(query[i+1:i+1+n])))
		i += 1 + n
	}
	if i+5 > len(query) {
		return "", 0, 0, false
	}
	return strings.Join(labels, "."), binary.BigEndian.Uint16(query[i+1:]), i + 5, true
}

// wireName encodes a name; "." is the root.
func wireName(name string) []byte {
	var b []byte
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		if label != "" {
			b = append(append(b, byte(len(label))), label...)
		}
	}
	return append(b, 0)
}
