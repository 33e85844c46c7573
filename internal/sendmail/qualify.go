package sendmail

import "dma/internal/address"

// qualify completes the bare names in the body of an address field:
// "root (Cron Daemon)" becomes "root@mail.example (Cron Daemon)". It only ever
// inserts "@" and the mail name after a word that is an address by itself or
// the only thing between angle brackets. All other octets stay as they are,
// with their comments and folding; so do quoted local parts, group names, the
// empty brackets, and the whole body if its syntax is broken.
func qualify(body []byte, mailName string) []byte {
	spans, ok := address.Spans(body)
	if !ok || mailName == "" {
		return body
	}
	var out []byte
	last := 0
	for _, s := range spans {
		if !bareName(body[s.From:s.To]) {
			continue
		}
		out = append(out, body[last:s.To]...)
		out = append(out, '@')
		out = append(out, mailName...)
		last = s.To
	}
	if last == 0 {
		return body
	}
	return append(out, body[last:]...)
}

// bareName reports whether an address is a plain word, with no domain.
func bareName(word []byte) bool {
	for _, c := range word {
		if !isAtomByte(c) && c < 0x80 && c != '.' {
			return false
		}
	}
	return word[0] != '.'
}
