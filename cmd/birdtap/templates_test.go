package main

import (
	"strings"
	"testing"

	"github.com/birdtap/birdtap/sendbird/sendbirdtest"
)

const (
	saleTemplate = `{"key":"sale","name":"Sale","is_archived":false,"created_at":1714374338539,"updated_at":1714374999000,"version":3,
		"channels":[{"key":"message-center","type":"feed","name":"Feed"},{"key":"push","type":"push","name":"Push","content":{"title":"x"}}],
		"variable_schema":[{"key":"name","type":"String","name":"Name"},{"key":"photo","type":"IMAGE","name":"Photo"}]}`
	oldTemplate = `{"key":"old","name":"Old\u001b[2J","is_archived":true,"version":1,"channels":[],"variable_schema":[]}`
)

func TestTemplatesAreListed(t *testing.T) {
	s, environ := sendbirdFake(t)
	if got := birdtap(t, environ, "templates"); got.code != exitDone || got.out != "" || got.err != "0 templates\n" {
		t.Errorf("none: %+v", got)
	}
	for _, resource := range []string{saleTemplate, oldTemplate} {
		if err := s.AddTemplate(resource); err != nil {
			t.Fatal(err)
		}
	}
	got := birdtap(t, environ, "templates")
	want := `KEY   NAME     VERSION  STATE     UPDATED               CHANNELS    VARIABLES
sale  Sale     3        active    2024-04-29T07:16:39Z  feed, push  name, photo (image)
old   Old?[2J  1        archived  -                     -           -
`
	if got.code != exitDone || got.out != want || got.err != "2 templates\n" {
		t.Errorf("code %d, stderr %q\n%s", got.code, got.err, got.out)
	}
	got = birdtap(t, environ, "templates", "--json")
	want = `{"key":"sale","name":"Sale","archived":false,"version":3,"created_at":"2024-04-29T07:05:38.539Z","updated_at":"2024-04-29T07:16:39Z","channels":[{"key":"message-center","type":"feed","name":"Feed"},{"key":"push","type":"push","name":"Push"}],"variables":[{"key":"name","type":"string","name":"Name"},{"key":"photo","type":"image","name":"Photo"}]}
`
	if first, _, _ := strings.Cut(got.out, "\n"); got.code != exitDone || first+"\n" != want || strings.Count(got.out, "\n") != 2 || got.err != "" {
		t.Errorf("code %d, stderr %q\n%s", got.code, got.err, got.out)
	}
}

func TestOneTemplateShowsItsVariables(t *testing.T) {
	s, environ := sendbirdFake(t)
	if err := s.AddTemplate(saleTemplate); err != nil {
		t.Fatal(err)
	}
	got := birdtap(t, environ, "templates", "sale")
	want := `key       sale
name      Sale
version   3
state     active
created   2024-04-29T07:05:38Z
updated   2024-04-29T07:16:39Z
channels  feed, push

VARIABLE  TYPE    NAME
name      string  Name
photo     image   Photo
`
	if got.code != exitDone || got.out != want || got.err != "" {
		t.Errorf("code %d, stderr %q\n%s", got.code, got.err, got.out)
	}
	if got := birdtap(t, environ, "templates", "sale", "--json"); got.code != exitDone || !strings.HasPrefix(got.out, `{"key":"sale",`) || strings.Count(got.out, "\n") != 1 {
		t.Errorf("%+v", got)
	}
	if got := birdtap(t, environ, "templates", "none"); got.code != exitFailed || !strings.Contains(got.err, "get template: Sendbird answered 400, code 400201: no such resource") {
		t.Errorf("%+v", got)
	}
}

// Where an answer is not understood it is shown, and that is no failure.
func TestUnknownAnswerIsShownAsItIs(t *testing.T) {
	s, environ := sendbirdFake(t)
	for _, args := range [][]string{{"templates"}, {"templates", "sale"}, {"templates", "--json"}} {
		s.Script(sendbirdtest.Templates, sendbirdtest.Status(200, nil, "{ \"what\" : [ 9007199254740993 ,\n\"\u009b31m\" ] }"))
		got := birdtap(t, environ, args...)
		want := `{"what":[9007199254740993,"?31m"]}` + "\n"
		if args[len(args)-1] == "--json" {
			want = strings.Replace(want, "?", "\u009b", 1)
		}
		if got.code != exitDone || got.out != want || !strings.Contains(got.err, "not documented") {
			t.Errorf("%v: %+v", args, got)
		}
	}
}
