package sendbird

import (
	"bytes"
	"context"
	"net/url"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Template is a notification's design, made in Sendbird's dashboard.
type Template struct {
	// Key names the template in a call.
	Key        string
	Name       string
	IsArchived bool
	CreatedAt  Time
	UpdatedAt  Time
	Version    int
	Channels   []Channel
	// Variables is what every user needs a value for.
	Variables []Variable
	// Raw is the whole resource as it came.
	Raw jsontext.Value

	understood bool
}

// Understood tells whether the resource had the documented shape. If not, Raw and
// at most the key are all there is.
func (t Template) Understood() bool { return t.understood }

// Channel is a way to a user: a feed in the app, push, and others.
type Channel struct {
	Key  string `json:"key"`
	Type string `json:"type"`
	Name string `json:"name,omitempty"`
}

// Variable is one entry of a template's list.
type Variable struct {
	Key  string `json:"key"`
	Type Kind   `json:"type"` // lower case; any other word than the three is kept
	Name string `json:"name,omitempty"`
}

// wireTemplateResource is a template as it comes. One version of the page has a
// template_key beside the key, which is then an id of its own.
type wireTemplateResource struct {
	Key            string     `json:"key"`
	TemplateKey    string     `json:"template_key"`
	Name           string     `json:"name"`
	IsArchived     bool       `json:"is_archived"`
	CreatedAt      Time       `json:"created_at"`
	UpdatedAt      Time       `json:"updated_at"`
	Version        int        `json:"version"`
	Channels       []Channel  `json:"channels"`
	VariableSchema []Variable `json:"variable_schema"`
}

// parseTemplate reads one resource; false if it is none. Whatever has another
// shape than documented still names its key: a change at Sendbird must not block
// a send.
func parseTemplate(raw jsontext.Value) (Template, bool) {
	var w wireTemplateResource
	understood := json.Unmarshal(raw, &w) == nil
	if !understood {
		var least struct {
			Key         string `json:"key"`
			TemplateKey string `json:"template_key"`
		}
		if json.Unmarshal(raw, &least) != nil {
			return Template{}, false
		}
		w = wireTemplateResource{Key: least.Key, TemplateKey: least.TemplateKey}
	}
	t := Template{
		Key: w.Key, Name: w.Name, IsArchived: w.IsArchived,
		CreatedAt: w.CreatedAt, UpdatedAt: w.UpdatedAt, Version: w.Version,
		Channels: w.Channels, Variables: w.VariableSchema, Raw: slices.Clone(raw),
		understood: understood,
	}
	if w.TemplateKey != "" {
		t.Key = w.TemplateKey
	}
	for i := range t.Variables {
		t.Variables[i].Type = Kind(strings.ToLower(string(t.Variables[i].Type)))
	}
	return t, t.Key != ""
}

// check holds the variables of one user against the template's list.
func (t *Template) check(v Variables, where string) error {
	names := make([]string, 0, len(t.Variables))
	for _, want := range t.Variables {
		names = append(names, want.Key)
		got, ok := v[want.Key]
		if !ok || got == nil {
			return &LimitError{where, "no " + quoted(want.Key), "template " + quoted(t.Key) + " needs it", pageTemplate}
		}
		if want.Type.known() && got.Kind() != want.Type {
			return &LimitError{where + ": " + quoted(want.Key), "of type " + string(got.Kind()), "template " + quoted(t.Key) + " has it as " + string(want.Type), pageTemplate}
		}
	}
	slices.Sort(names)
	if _, extra, same := v.sameNames(slices.Compact(names)); !same {
		return &LimitError{where, "a " + quoted(extra), "template " + quoted(t.Key) + " has no such variable", pageTemplate}
	}
	return nil
}

// TemplatePage is one page of a list of templates.
type TemplatePage struct {
	Templates []Template
	// Next is the token of the next page, "" if this is the last.
	Next string
	// Raw is the whole answer. It is all there is (no templates, no Next) where
	// the answer has a shape that nobody documented.
	Raw jsontext.Value
	// Readable tells whether the list was found in Raw.
	Readable bool
}

func (p *TemplatePage) complete() bool { return p.Raw != nil }

// UnmarshalJSON finds the list in the answer. Only the resource is documented,
// not what stands around it: so it is the array itself, or the one under
// "templates" or "results".
func (p *TemplatePage) UnmarshalJSON(b []byte) error {
	*p = TemplatePage{Raw: bytes.Clone(b)}
	var list []jsontext.Value
	if json.Unmarshal(b, &list) != nil {
		var around struct {
			Templates []jsontext.Value `json:"templates"`
			Results   []jsontext.Value `json:"results"`
			Next      jsontext.Value   `json:"next"`
		}
		_ = json.Unmarshal(b, &around) // what does not fit leaves no list
		if around.Templates == nil && around.Results == nil {
			return nil // shown as it is
		}
		list = around.Templates
		if list == nil {
			list = around.Results
		}
		_ = json.Unmarshal(around.Next, &p.Next) // no string: there is no next page
	}
	found := make([]Template, 0, len(list))
	for _, raw := range list {
		t, ok := parseTemplate(raw)
		if !ok {
			p.Next = ""
			return nil
		}
		found = append(found, t)
	}
	p.Templates, p.Readable = found, true
	return nil
}

// templateAnswer is one template, or what came in its place.
type templateAnswer struct {
	raw      jsontext.Value
	template Template
	ok       bool
}

func (a *templateAnswer) complete() bool { return a.raw != nil }

func (a *templateAnswer) UnmarshalJSON(b []byte) error {
	a.raw = bytes.Clone(b)
	a.template, a.ok = parseTemplate(a.raw)
	return nil
}

// Templates lists one page of templates, of which an application has at most 100.
// token is the Next of the page before, "" for the first. The path is inferred:
// the page describes the resource only.
//
// https://sendbird.com/docs/business-messaging/server-side/v2/templates
func (c *Client) Templates(ctx context.Context, token string) (TemplatePage, error) {
	path := "/v1/templates"
	if token != "" {
		path += "?token=" + url.QueryEscape(token)
	}
	var page TemplatePage
	err := c.call(ctx, endpointTemplates, path, nil, &page)
	return page, err
}

// Template gets one template with the list of its variables. Where the answer
// cannot be read the Template holds nothing but the key asked for and Raw, and
// nothing is checked against it. The path is inferred, as for Templates.
//
// https://sendbird.com/docs/business-messaging/server-side/v2/templates
func (c *Client) Template(ctx context.Context, key string) (Template, error) {
	if key == "" || !isLine(key) || key == "." || key == ".." {
		return Template{}, &LimitError{"template key", quoted(key), "a template's key is wanted", pageTemplate}
	}
	var a templateAnswer
	if err := c.call(ctx, endpointTemplate, "/v1/templates/"+url.PathEscape(key), nil, &a); err != nil {
		return Template{}, err
	}
	if !a.ok {
		return Template{Key: key, Raw: a.raw}, nil
	}
	return a.template, nil
}
