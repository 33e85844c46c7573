package queue

import (
	"bufio"
	"bytes"
	"io"
	"strings"
)

// trace is what the header of a message says about its way so far.
type trace struct {
	received  int      // Received fields
	delivered []string // addresses of Delivered-To fields
}

// maxTraceHeader bounds how much of a header is searched, in octets.
const maxTraceHeader = 1 << 20

// readTrace reads the trace fields of a header.
func readTrace(r io.Reader) (trace, error) {
	var t trace
	br := bufio.NewReaderSize(io.LimitReader(r, maxTraceHeader), 4096)
	begin := true // of a line
	for {
		line, err := br.ReadSlice('\n')
		if err != nil && err != io.EOF && err != bufio.ErrBufferFull {
			return t, err
		}
		if begin {
			if len(bytes.TrimRight(line, "\r\n")) == 0 {
				return t, nil
			}
			t.field(line)
		}
		begin = err != bufio.ErrBufferFull
		if err == io.EOF {
			return t, nil
		}
	}
}

func (t *trace) field(line []byte) {
	name, value, ok := bytes.Cut(line, []byte(":"))
	if !ok {
		return
	}
	switch name = bytes.TrimRight(name, " \t"); {
	case bytes.EqualFold(name, []byte("Received")):
		t.received++
	case bytes.EqualFold(name, []byte("Delivered-To")):
		if len(t.delivered) < 1000 {
			t.delivered = append(t.delivered, strings.TrimSpace(string(value)))
		}
	}
}

// deliveredTo reports whether a Delivered-To field names an address.
func (t *trace) deliveredTo(addr string, same func(a, b string) bool) bool {
	for _, d := range t.delivered {
		if same(d, addr) {
			return true
		}
	}
	return false
}
