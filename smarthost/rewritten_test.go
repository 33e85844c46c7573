package smarthost

import (
	"fmt"
	"testing"
	"testing/synctest"
)

// TestRewrittenSender: where our own configuration gives a sender that the relay
// cannot take, the mail waits; what the sender wrote comes back.
func TestRewrittenSender(t *testing.T) {
	for rewritten, want := range map[bool]string{true: "tempfail 4.6.7 MAIL", false: "permfail 5.6.7 MAIL"} {
		synctest.Test(t, func(t *testing.T) {
			r := New(relayTo(t, &tlsServer{}, false))
			m := testMessage(0, "a@x")
			m.Sender, m.Rewritten = "j\u00f6rg@world.example", rewritten
			o := outcomes(t.Context(), r, m)[0]
			r.Close()
			if got := fmt.Sprint(o.Verdict, " ", o.Status(), " ", o.Command); got != want {
				t.Errorf("%s (%s), want %s", got, o.Text(), want)
			}
		})
	}
}
