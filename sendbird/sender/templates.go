package sender

import (
	"context"
	"sync"
	"time"

	"github.com/birdtap/birdtap/sendbird"
)

const (
	// templateWait is how long a call waits for its template's list of variables. One
	// that cannot be read blocks nobody.
	templateWait = 2 * time.Second
	// templateFresh is for how long a template, or that there is none to be had, is
	// taken for known.
	templateFresh = 5 * time.Minute
)

// templates remembers what Sendbird says of templates.
type templates struct {
	client Client

	mu    sync.Mutex
	known map[string]knownTemplate
}

type knownTemplate struct {
	template *sendbird.Template // nil: cannot be read
	until    time.Time
}

// get returns a template, nil if it cannot be read.
func (t *templates) get(ctx context.Context, key string) *sendbird.Template {
	t.mu.Lock()
	defer t.mu.Unlock() // a second one who asks gets the same answer
	if known, ok := t.known[key]; ok && time.Now().Before(known.until) {
		return known.template
	}
	ask, cancel := context.WithTimeout(ctx, templateWait)
	defer cancel()
	known := knownTemplate{until: time.Now().Add(templateFresh)}
	if template, err := t.client.Template(ask, key); err == nil && template.Understood() {
		known.template = &template
	}
	if ctx.Err() == nil {
		if t.known == nil || len(t.known) >= maxTemplates {
			t.known = map[string]knownTemplate{}
		}
		t.known[key] = known
	}
	return known.template
}

// maxTemplates is more than the 100 that an application has.
const maxTemplates = 1000
