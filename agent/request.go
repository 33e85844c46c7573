package agent

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"dma/forward"
	"dma/spooldir"
)

// Requests go from the queue process to an agent. The first octet is the kind.
const (
	pingRequest    = 'P' // answer that you are alive
	forwardRequest = 'F' // read the .forward; one at a time
	jobRequest     = 'J' // a job, the next one of a batch
	endRequest     = 'E' // the batch is complete: carry it out; one at a time
	chunkRequest   = 'C' // what readAnswer has asked for
)

// Bounds of requests, in octets.
const (
	maxRequest = 256 << 10 // a frame
	maxBatch   = 64        // jobs
	maxInline  = 64 << 10  // content that goes with its job
	maxChunk   = 128 << 10 // content at a time, of one that does not
	maxText    = 4 << 10   // an address, a detail
	maxHeader  = 64 << 10  // trace fields
	maxSize    = 1 << 40   // content
	maxNumber  = 65000     // recipient numbers

	maxArrival = 253402300799 // the end of the year 9999
)

// A request is one that came in.
type request struct {
	kind   byte
	detail string // forward
	job    *Job   // job; its content is missing unless it came with it
	inline bool
	chunk  []byte // chunk
	failed bool   // chunk: it could not be read
}

// checkJob says why a job cannot be sent to an agent, or have come from a queue
// process.
func checkJob(j *Job) error {
	texts := []string{j.Recipient, j.Original, j.Detail, j.Domain, j.Source, j.Message.Sender}
	for _, s := range texts {
		if len(s) > maxText || hasControl(s) {
			return fmt.Errorf("%q is no address", oneLine(s, 100))
		}
	}
	m := &j.Message
	switch {
	case j.Kind != spooldir.Mailbox && j.Kind != spooldir.File && j.Kind != spooldir.Command:
		return fmt.Errorf("a recipient of kind %d is not delivered", j.Kind)
	case j.Kind == spooldir.Command && j.Target == "":
		return errors.New("an empty command")
	case len(j.Target) > forward.MaxTarget || hasControl(strings.ReplaceAll(j.Target, "\t", "")):
		return fmt.Errorf("target %q is too long or has control characters", oneLine(j.Target, 100))
	case j.Kind == spooldir.File && !filepath.IsAbs(j.Target):
		return fmt.Errorf("file %q is no absolute path", oneLine(j.Target, 100))
	case len(m.ID) > maxText || m.Recipient < 1 || m.Recipient > maxNumber:
		return fmt.Errorf("recipient %d of message %q", m.Recipient, oneLine(m.ID, 100))
	case m.Arrival.Unix() < 0 || m.Arrival.Unix() > maxArrival:
		return fmt.Errorf("a message of %v", m.Arrival)
	case len(m.Header) > maxHeader || m.Size < 0 || m.Size > maxSize:
		return fmt.Errorf("%d octets of trace fields, %d octets of content", len(m.Header), m.Size)
	}
	return nil
}

// encodeJob makes the request for a job. Content of at most maxInline octets
// goes with it. If it cannot be read, that shows when the agent asks for it.
func encodeJob(j *Job) []byte {
	m := &j.Message
	e := encoder{b: make([]byte, 0, 512+len(m.Header)+len(j.Target)+int(min(m.Size, maxInline)))}
	e.b = append(e.b, jobRequest)
	e.uint(uint64(j.Kind))
	for _, s := range []string{j.Target, j.Source, j.Recipient, j.Original, j.Detail, j.Domain, m.ID, m.Sender} {
		e.string(s)
	}
	e.uint(uint64(m.Recipient))
	e.uint(uint64(m.Arrival.Unix()))
	e.uint(uint64(m.Arrival.Nanosecond()))
	e.bytes(m.Header)
	e.uint(uint64(m.Size))
	e.bool(m.Suspect)
	if m.Size <= maxInline {
		content := make([]byte, m.Size)
		n := 0
		if m.Size > 0 {
			n, _ = m.Content.ReadAt(content, 0)
		}
		if n == len(content) {
			e.bool(true)
			e.b = append(e.b, content...)
			return e.b
		}
	}
	e.bool(false)
	return e.b
}

func encodeForward(detail string) []byte {
	e := encoder{b: []byte{forwardRequest}}
	e.string(detail)
	return e.b
}

// encodeChunk makes the answer to readAnswer; nil: it could not be read.
func encodeChunk(p []byte) []byte {
	e := encoder{b: make([]byte, 0, len(p)+16)}
	e.b = append(e.b, chunkRequest)
	e.bool(p == nil)
	e.bytes(p)
	return e.b
}

// parseRequest reads a request, of which it keeps parts.
func parseRequest(b []byte) (request, error) {
	if len(b) == 0 {
		return request{}, errProtocol
	}
	r := request{kind: b[0]}
	d := &decoder{b: b[1:]}
	switch r.kind {
	case pingRequest, endRequest:
	case forwardRequest:
		r.detail = d.string(maxText)
		if hasControl(r.detail) {
			return request{}, errProtocol
		}
	case chunkRequest:
		r.failed = d.bool()
		r.chunk = d.bytes(maxChunk)
	case jobRequest:
		return d.job(r)
	default:
		return request{}, errProtocol
	}
	return r, d.end()
}

func (d *decoder) job(r request) (request, error) {
	j := &Job{Kind: spooldir.RecipientKind(d.uint(uint64(spooldir.Command)))}
	m := &j.Message
	j.Target = d.string(forward.MaxTarget)
	for _, s := range []*string{&j.Source, &j.Recipient, &j.Original, &j.Detail, &j.Domain, &m.ID, &m.Sender} {
		*s = d.string(maxText)
	}
	m.Recipient = int(d.uint(maxNumber))
	seconds := d.uint(maxArrival)
	m.Arrival = time.Unix(int64(seconds), int64(d.uint(1e9-1)))
	m.Header = d.bytes(maxHeader)
	m.Size = int64(d.uint(maxSize))
	m.Suspect = d.bool()
	r.inline = d.bool()
	if d.bad || r.inline && m.Size > maxInline {
		return request{}, errProtocol
	}
	if r.inline {
		m.Content = bytes.NewReader(d.b)
		if int64(len(d.b)) != m.Size {
			return request{}, errProtocol
		}
		d.b = nil
	}
	if err := checkJob(j); err != nil {
		return request{}, fmt.Errorf("%w: %w", errProtocol, err)
	}
	r.job = j
	return r, d.end()
}
