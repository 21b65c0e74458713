/** Error responses, and the page's texts for them. */

import { parseProblem, type Problem } from "./conversation";
import type { TextKey } from "./en";
import { t, translated } from "./i18n";

export function pageProblem(
  code: string,
  title: TextKey,
  detail: TextKey,
  values: Record<string, string | number> = {},
): Problem {
  return { code, title: t(title, values), detail: t(detail, values) };
}

/** Reads the problem details of an error response, https://www.rfc-editor.org/rfc/rfc9457, or makes up for missing ones:
    the platform's key check and a sign-in in front of the app reply in formats of their own. The app itself names the
    scheme Bearer too, for its callers' keys, and replies in JSON. */
export async function readProblem(response: Response, hasKey: boolean): Promise<Problem> {
  const isJson = /\bjson\b/i.test(response.headers.get("Content-Type") ?? "");
  if (
    response.type === "opaqueredirect" ||
    (response.status === 401 && !isJson && /\bbearer\b/i.test(response.headers.get("WWW-Authenticate") ?? ""))
  ) {
    return { status: 401, ...pageProblem("sign_in", "sign_in.title", "sign_in.detail") };
  }
  if (response.status === 401) {
    return {
      status: 401,
      ...(hasKey
        ? pageProblem("key", "keyWrong.title", "keyWrong.detail")
        : pageProblem("key", "key.title", "key.detail")),
    };
  }
  let members: Record<string, unknown> = {};
  if (isJson) {
    try {
      const data: unknown = await response.json();
      if (typeof data === "object" && data !== null) members = data as Record<string, unknown>;
    } catch {
      // `withTexts` provides a general text.
    }
  }
  const retryAfter = Number(response.headers.get("Retry-After"));
  return withTexts({ ...(retryAfter > 0 ? { retry_after: retryAfter } : {}), ...members, status: response.status });
}

/** The problem in the reader's language, with a text where it has none. */
export function withTexts(members: Record<string, unknown>): Problem {
  const problem = parseProblem(members);
  const status = problem.status ?? 0;
  if (problem.retry_after && problem.retry_after > 0)
    problem.retryAt = Date.now() + Math.min(problem.retry_after, 86400) * 1000;
  if (problem.code) {
    problem.title = translated(`problem.${problem.code}.title`) ?? problem.title;
    problem.detail = translated(`problem.${problem.code}.detail`) ?? problem.detail;
  }
  if (problem.code === "rate_limited") problem.detail = t("rate_limited.detail");
  if (!problem.title) {
    const general =
      status === 403
        ? "forbidden"
        : status === 429
          ? "busy"
          : status >= 500
            ? "error"
            : status === 200 || status === 0
              ? "unexpected"
              : "rejected";
    problem.title = t(`${general}.title` as TextKey, { status });
    problem.detail = t(`${general}.detail` as TextKey, { status });
  }
  return problem;
}
