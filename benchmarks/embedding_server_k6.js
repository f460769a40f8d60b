// 100 clients, one distinct short text a request: k6 run -e URL=http://127.0.0.1:8000 THIS_FILE
import http from 'k6/http';
import { check } from 'k6';
import exec from 'k6/execution';

export const options = {
  vus: Number(__ENV.CLIENTS || 100),
  duration: __ENV.DURATION || '20s',
  summaryTrendStats: ['med', 'p(95)', 'p(99)', 'max'],
  thresholds: {
    http_req_duration: ['p(99)<250'],
    checks: ['rate==1'],
  },
};

const WORDS =
  'river stone light paper garden winter music letter bridge market silver window forest ' +
  'doctor summer island kitchen morning captain village mountain station teacher history ' +
  'engine painting shadow weather journey harbor';
const words = WORDS.split(' ');
const parameters = { headers: { 'content-type': 'application/json' } };
const url = `${__ENV.URL || 'http://127.0.0.1:8000'}/v1/embeddings`;

function text() {
  // The number makes each one new, so that no cache knows it.
  const length = 2 + Math.floor(Math.random() * 15);
  const chosen = [exec.scenario.iterationInTest];
  for (let i = 0; i < length; i += 1) {
    chosen.push(words[Math.floor(Math.random() * words.length)]);
  }
  return chosen.join(' ');
}

export default function ask() {
  const body = { input: text(), encoding_format: 'base64' };
  if (__ENV.MODEL) {
    body.model = __ENV.MODEL;
  }
  const answer = http.post(url, JSON.stringify(body), parameters);
  check(answer, {
    'has a vector': (r) => r.status === 200 && r.json('data.0.embedding').length > 0,
  });
}
