package passwd

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

// counted answers from a map, and counts.
type counted struct {
	users map[string]User
	asked int
}

func (c *counted) Lookup(_ context.Context, name string) (User, error) {
	c.asked++
	if u, ok := c.users[name]; ok {
		return u, nil
	}
	return User{}, ErrUnknown
}

func (c *counted) LookupID(context.Context, int) (User, error) {
	c.asked++
	return User{}, ErrUnknown
}

func TestRecent(t *testing.T) {
	ctx := context.Background()
	source := &counted{users: map[string]User{"ann": {Name: "ann", UID: 1000}}}
	now := time.Unix(1_000_000_000, 0)
	r := NewRecent(source, func() time.Time { return now })
	look := func(name string, uid, asked int) {
		t.Helper()
		u, err := r.Lookup(ctx, name)
		switch {
		case uid < 0 && !errors.Is(err, ErrUnknown), uid >= 0 && (err != nil || u.UID != uid):
			t.Errorf("%s: %v, %v", name, u, err)
		}
		if source.asked != asked {
			t.Errorf("%s: asked %d times instead of %d", name, source.asked, asked)
		}
	}
	look("ann", 1000, 1)
	look("ann", 1000, 1)
	look("bob", -1, 2)
	look("bob", -1, 3)
	source.users["ann"] = User{Name: "ann", UID: 1001}
	now = now.Add(recentFor - 1)
	look("ann", 1000, 3)
	now = now.Add(1)
	look("ann", 1001, 4)
	now = now.Add(-time.Hour) // a clock that was set back makes no answer last
	look("ann", 1001, 5)
	delete(source.users, "ann")
	now = now.Add(recentFor)
	look("ann", -1, 6)
	source.users["ann"] = User{Name: "ann", UID: 1002}
	look("ann", 1002, 7)
	for i := range 2 * recentMost {
		name := fmt.Sprint("user", i)
		source.users[name] = User{Name: name}
		if _, err := r.Lookup(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(r.users); n > recentMost {
		t.Errorf("%d users are kept", n)
	}
}
