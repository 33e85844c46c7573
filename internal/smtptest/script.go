package smtptest

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
)

// Script is what a server does on one connection. Scenario has its language.
type Script struct {
	// TLS returns what the server has for the step tls.
	TLS func(name string) *tls.Config

	steps []step
}

// ParseScript reads the steps of a server, one a line.
func ParseScript(text string) (*Script, error) {
	var s Script
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		word, rest, _ := strings.Cut(line, " ")
		more, err := parseStep(word, strings.TrimSpace(rest))
		if err != nil {
			return nil, fmt.Errorf("%q: %w", line, err)
		}
		s.steps = append(s.steps, more...)
	}
	return &s, nil
}

// step is one thing that a server does.
type step struct {
	kind string // say, hear, tls, data, read, send, silence, stall, close, reset
	text string
	n    int
}

func parseStep(word, rest string) ([]step, error) {
	var steps []step
	switch word {
	case "S:":
		for line := range strings.SplitSeq(rest, "|") {
			steps = append(steps, step{kind: "say", text: strings.TrimSpace(line) + "\r\n"})
		}
	case "C:":
		for word := range strings.FieldsSeq(rest) {
			steps = append(steps, step{kind: "hear", text: word})
		}
	case "L:":
		steps = append(steps, step{kind: "hear", text: rest})
	case "hello", "lhlo":
		lines := "250-test\r\n"
		for ext := range strings.SplitSeq(rest, ",") {
			if ext = strings.TrimSpace(ext); ext != "" {
				lines += "250-" + ext + "\r\n"
			}
		}
		command := "EHLO"
		if word == "lhlo" {
			command = "LHLO"
		}
		steps = append(steps, step{kind: "say", text: "220 test ready\r\n"}, step{kind: "hear", text: command},
			step{kind: "say", text: lines + "250 HELP\r\n"})
	case "read":
		n, err := strconv.Atoi(rest)
		return []step{{kind: word, n: n}}, err
	case "send":
		count, quoted, _ := strings.Cut(rest, " ")
		n, err := strconv.Atoi(count)
		if err != nil {
			return nil, err
		}
		text, err := strconv.Unquote(quoted)
		return []step{{kind: word, text: text, n: n}}, err
	case "tls":
		steps = append(steps, step{kind: word, text: rest})
	case "data", "silence", "stall", "close", "reset":
		if rest != "" {
			return nil, errors.New("takes no argument")
		}
		steps = append(steps, step{kind: word})
	default:
		return nil, errors.New("no such step")
	}
	return steps, nil
}

// Has reports whether a step of one of these kinds occurs: tls, send, silence,
// stall, close, reset.
func (s *Script) Has(kinds ...string) bool {
	for _, step := range s.steps {
		for _, k := range kinds {
			if step.kind == k {
				return true
			}
		}
	}
	return false
}

// Serve plays the script on conn and closes it at the end. The error says where
// the client did something else than the script has. When ctx is done it ends.
func (s *Script) Serve(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	br := bufio.NewReader(conn)
	for i, step := range s.steps {
		if step.kind == "tls" {
			secure := tls.Server(conn, s.TLS(step.text))
			if err := secure.HandshakeContext(ctx); err != nil {
				return nil // what the client makes of the certificate, the scenario says
			}
			conn = secure
			br.Reset(conn)
			continue
		}
		end, err := step.play(ctx, conn, br)
		if err != nil {
			return fmt.Errorf("step %d, %s %.60q: %w", i+1, step.kind, step.text, err)
		}
		if end {
			return nil
		}
	}
	line, err := br.ReadString('\n')
	switch {
	case err != nil && line == "":
		return nil
	case strings.EqualFold(strings.TrimSpace(line), "QUIT"):
		_, _ = io.WriteString(conn, "221 bye\r\n")
		return nil
	}
	return fmt.Errorf("after the last step: %.60q", line)
}

// play does one step; end says that it was the last.
func (s *step) play(ctx context.Context, conn net.Conn, br *bufio.Reader) (end bool, err error) {
	switch s.kind {
	case "say":
		_, err = io.WriteString(conn, s.text)
	case "hear":
		var line string
		line, err = br.ReadString('\n')
		if err == nil && (len(line) < len(s.text) || !strings.EqualFold(line[:len(s.text)], s.text) || !strings.HasSuffix(line, "\r\n")) {
			err = fmt.Errorf("the client said %.60q", line)
		}
	case "data":
		for line := ""; err == nil && line != ".\r\n"; {
			line, err = br.ReadString('\n')
		}
	case "read":
		_, err = io.CopyN(io.Discard, br, int64(s.n))
	case "send":
		// In parts, so that a test of a flood needs no memory for it. A client
		// that hangs up is what it should do.
		per := max(1, 32*1024/max(1, len(s.text)))
		for left := s.n; left > 0 && err == nil; left -= per {
			_, err = io.WriteString(conn, strings.Repeat(s.text, min(per, left)))
		}
		return err != nil, nil
	case "silence":
		_, _ = io.Copy(io.Discard, br)
		return true, nil
	case "stall":
		<-ctx.Done()
		return true, nil
	case "close":
		return true, nil
	case "reset":
		reset(conn)
		return true, nil
	}
	return false, err
}
