import { createInterface, type Interface } from 'node:readline'
import { Writable } from 'node:stream'
import { isPassword, isTooShort, shortestPassword } from '../auth/passwords.js'
import { Misuse, Refusal } from './command.js'

/** Longest line that is read from standard input, in bytes. */
const longestLine = 4096

/**
 * A new password: asked for twice on a terminal, without showing it, or the first line of standard input.
 * @throws Refusal for one that nobody can have or that is too short, and when the two differ
 */
export async function readNewPassword(name: string): Promise<string> {
  const password = process.stdin.isTTY ? await askTwice(name) : await readFirstLine()
  if (password === '') throw new Refusal('The password is empty: type one, or send it to standard input.')
  if (!isPassword(password)) {
    throw new Refusal('A password has at most 1024 bytes and no NUL: nothing was changed.')
  }
  if (isTooShort(password)) {
    throw new Refusal(
      `A new password has at least ${shortestPassword} characters, such as a few words: nothing was changed. For a machine, "boathouse token create" makes a better one.`,
    )
  }
  return password
}

/** Asks a question that `y` or `yes` agrees to. @throws Misuse when there is nobody to ask */
export async function confirm(question: string, instead: string): Promise<boolean> {
  if (!process.stdin.isTTY) throw new Misuse(`There is no terminal to ask on: ${instead}.`)
  const [answer = ''] = await askLines([`${question} [y/N] `], true)
  return /^y(?:es)?$/i.test(answer.trim())
}

async function askTwice(name: string): Promise<string> {
  const [first = '', second] = await askLines([`Password for ${name}: `, 'The same again: '], false)
  if (first !== second) throw new Refusal('The two passwords differ: nothing was changed.')
  return first
}

/** Asks on standard error: standard output is for answers. */
async function askLines(prompts: readonly string[], isShown: boolean): Promise<string[]> {
  const nowhere = new Writable({ write: (_chunk, _encoding, done) => done() })
  // The interface stops the terminal's own echo, so it must be there before anybody is asked to type.
  const lines = createInterface({
    input: process.stdin,
    output: isShown ? process.stderr : nowhere,
    terminal: true,
    historySize: 0,
  })
  lines.on('SIGINT', () => lines.close())
  try {
    return await collect(lines, prompts, isShown)
  } finally {
    lines.close()
  }
}

async function collect(lines: Interface, prompts: readonly string[], isShown: boolean): Promise<string[]> {
  const answers: string[] = []
  const arriving = lines[Symbol.asyncIterator]()
  for (const prompt of prompts) {
    if (isShown) {
      lines.setPrompt(prompt)
      lines.prompt()
    } else process.stderr.write(prompt)
    const { value, done } = await arriving.next()
    if (!isShown || done === true) process.stderr.write('\n')
    if (done === true) throw new Refusal('Stopped: nothing was changed.')
    answers.push(value)
  }
  return answers
}

/** Does not wait for what comes after the line. */
async function readFirstLine(): Promise<string> {
  const chunks: Buffer[] = []
  let length = 0
  for await (const chunk of process.stdin) {
    const bytes = Buffer.from(chunk)
    const end = bytes.indexOf('\n')
    chunks.push(end < 0 ? bytes : bytes.subarray(0, end))
    length += bytes.length
    if (end >= 0 || length > longestLine) break
  }
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(Buffer.concat(chunks)).replace(/\r$/, '')
  } catch {
    throw new Refusal('The password is not UTF-8 text: nothing was changed.')
  }
}
