package rewrite

import (
	"dma/internal/address"
	"dma/internal/config"
	"dma/internal/mapfile"
)

// maxMap is the most octets of a map.
const maxMap = 4 << 20

// entry is a line of a map.
type entry struct {
	key  string // a user name or an address, as address.Address writes it
	to   address.Address
	line int
}

// parseMap reads a map. It returns the entries that it could read, and a problem
// for each line that it could not, up to a bound.
func parseMap(file string, text []byte) (entries []entry, problems []config.Problem) {
	for e := range mapfile.Entries(text) {
		got, why := parseEntry(e)
		switch {
		case why == "":
			entries = append(entries, got)
		case len(problems) <= mapfile.MaxProblems:
			problems = append(problems, config.Problem{File: file, Line: e.Line, Text: why + "; the line is ignored"})
		}
	}
	return entries, problems
}

func parseEntry(e mapfile.Entry) (got entry, why string) {
	from, err := address.Parse(e.Key)
	if err != nil {
		return entry{}, err.Error()
	}
	if e.Value == "" {
		return entry{}, "an address is missing after " + address.Encode(e.Key)
	}
	to, err := address.Parse(e.Value)
	if err != nil {
		return entry{}, err.Error()
	}
	return entry{key: from.String(), to: to, line: e.Line}, ""
}
