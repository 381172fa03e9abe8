"""Vietnamese lines of text from nothing: what a reader learns to read, made by rule and by seed.

    syllable = onset + rhyme, with one of six tones       ng + ương + huyền -> ngường

The inventory of onsets and rhymes is closed and small, so that every letter with every mark that the language has
comes up. Lines mix common words, syllables of the inventory (most of them mean nothing), verses and proverbs in
the public domain, numbers, dates and addresses, and a few rows of characters drawn one by one, for those that no
text has. Half of what is drawn makes no sense, on purpose: a reader should see what stands there, not guess it.
"""

from __future__ import annotations

import unicodedata

import numpy as np

TONES = ("", "\u0300", "\u0309", "\u0303", "\u0301", "\u0323")  # none, huyền, hỏi, ngã, sắc, nặng
STOPPED = (4, 5)  # the only tones of a syllable that ends in c, ch, p or t


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ONSETS = _listed("b c ch d đ g h kh l m n ng nh ph r s t th tr v x")
BEFORE_FRONT = {"c": "k", "g": "gh", "ng": "ngh"}  # as it is spelled before i, e, ê and y
RHYMES = _listed(
    "a ac ach ai am an ang anh ao ap at au ay ăc ăm ăn ăng ăp ăt âc âm ân âng âp ât âu ây e ec em en eo ep et "
    "ê êch êm ên ênh êp êt êu i ia ich iêc iêm iên iêng iêp iêt iêu im in inh ip it iu o oa oac oach oai oan "
    "oang oanh oay oăc oăn oăng oăt oc oe oen oet oi om on ong op ot ô ôc ôi ôm ôn ông ôp ôt ơ ơi ơm ơn ơp ơt "
    "u ua uân uât uây uc uê uênh ui um un ung uôc uôi uôm uôn uông uôt uơ up ut uy uyên uyêt uynh uyt ư ưa ưc "
    "ưi ưm ưn ưng ươc ươi ươm ươn ương ươp ươt ưt ưu y"
)
WITH_Q = _listed("a ai an ang anh ac ach at au ay ăn ăng ăt ân ât ây e en eo et ê ên êt ơ y yên yêt ynh")
WITH_GI = _listed(
    "a ai am an ang anh ao ap at ac ăm ăn ăt âm ân ât âu ây eo o oi on ong ô ôi ông ơ u ua uc ui un ư ưa ương"
)
COMMON = _listed(
    "và của là có được cho không trong một những các người với này khi đã ra về để đến từ vào cũng như năm nhà "
    "làm việc nước theo tại sau trên đó sẽ còn nhiều phải ông bà anh chị em con mình tôi chúng ta họ nó bạn ngày "
    "tháng giờ phút tuần trước hai ba bốn bảy tám chín mười trăm nghìn triệu tỷ đồng lớn nhỏ mới cũ tốt xấu cao "
    "thấp dài ngắn đẹp Việt Nam Hà Nội Huế Đà Nẵng Sài Gòn thành phố tỉnh huyện quận phường xã đường số điện "
    "thoại địa chỉ họ tên sinh quê quán nghề nghiệp công ty trường học bệnh viện ngân hàng chợ cửa hàng sách báo "
    "kinh tế văn hóa xã hội chính trị giáo dục y tế khoa học kỹ thuật công nghệ thông tin môi trường pháp luật "
    "quốc gia quốc tế thế giới nhân dân chính phủ bộ sở phòng ban giám đốc chủ tịch thủ tướng nghị quyết quyết "
    "định nghị định thông tư văn bản hợp đồng báo cáo kế hoạch chương trình dự án đề án quy định tiêu chuẩn chất "
    "lượng quản lý tổ chức thực hiện kiểm tra phát triển xây dựng sản xuất kinh doanh đầu tư xuất khẩu nhập khẩu "
    "giá thuế tiền lương bảo hiểm khách dịch vụ sản phẩm hàng hóa thị trường doanh thu lợi nhuận máy tính mạng "
    "truyền hình phát thanh âm nhạc phim ảnh thể thao bóng đá đội tuyển vận động viên mùa xuân hạ thu đông mưa "
    "nắng gió bão núi sông biển rừng đất trời cây hoa lá chim cá trâu bò gà vịt cơm phở bún bánh chè cà phê nước "
    "mắm muối đường ăn uống ngủ đi đứng ngồi chạy nói nghe nhìn đọc viết hỏi trả lời yêu ghét vui buồn giận sợ "
    "sống chết khỏe ốm đau trẻ già nam nữ cha mẹ vợ chồng ông bà cháu bác chú cô dì cậu mợ thầy giáo sinh viên "
    "bác sĩ kỹ sư công nhân nông dân bộ đội thứ hai thứ ba chủ nhật sáng trưa chiều tối đêm hôm nay mai qua kia "
    "đây đấy đâu ai gì sao thế nào bao nhiêu mấy rất quá lắm hơn nhất cùng nhau đều vẫn đang sắp vừa mới chưa "
    "chẳng đừng hãy nếu thì vì nên nhưng mà hoặc hay bởi do tuy dù mặc dầu"
)
# Nguyễn Du (1766-1820), the beginning of Truyện Kiều; proverbs.
TEXTS = (
    "Trăm năm trong cõi người ta,",
    "Chữ tài chữ mệnh khéo là ghét nhau.",
    "Trải qua một cuộc bể dâu,",
    "Những điều trông thấy mà đau đớn lòng.",
    "Lạ gì bỉ sắc tư phong,",
    "Trời xanh quen thói má hồng đánh ghen.",
    "Cảo thơm lần giở trước đèn,",
    "Phong tình có lục còn truyền sử xanh.",
    "Rằng năm Gia Tĩnh triều Minh,",
    "Bốn phương phẳng lặng, hai kinh vững vàng.",
    "Có nhà viên ngoại họ Vương,",
    "Gia tư nghĩ cũng thường thường bậc trung.",
    "Một trai con thứ rốt lòng,",
    "Vương Quan là chữ, nối dòng nho gia.",
    "Đầu lòng hai ả tố nga,",
    "Thúy Kiều là chị, em là Thúy Vân.",
    "Mai cốt cách, tuyết tinh thần,",
    "Mỗi người một vẻ, mười phân vẹn mười.",
    "Vân xem trang trọng khác vời,",
    "Khuôn trăng đầy đặn, nét ngài nở nang.",
    "Hoa cười ngọc thốt đoan trang,",
    "Mây thua nước tóc, tuyết nhường màu da.",
    "Kiều càng sắc sảo, mặn mà,",
    "So bề tài, sắc, lại là phần hơn.",
    "Có công mài sắt, có ngày nên kim.",
    "Ăn quả nhớ kẻ trồng cây.",
    "Uống nước nhớ nguồn.",
    "Một cây làm chẳng nên non, ba cây chụm lại nên hòn núi cao.",
    "Đi một ngày đàng, học một sàng khôn.",
    "Gần mực thì đen, gần đèn thì sáng.",
    "Tốt gỗ hơn tốt nước sơn.",
    "Lá lành đùm lá rách.",
    "Công cha như núi Thái Sơn, nghĩa mẹ như nước trong nguồn chảy ra.",
    "Bầu ơi thương lấy bí cùng, tuy rằng khác giống nhưng chung một giàn.",
    "Không thầy đố mày làm nên.",
    "Chị ngã, em nâng.",
)
MODIFIED = "ăâêôơư"
VOWELS = "aeiouy" + MODIFIED


def syllable(rng: np.random.Generator) -> str:
    """One of some six thousand: half of them no one has ever said."""
    kind = rng.random()
    if kind < 0.05:
        onset, rhyme = "qu", str(rng.choice(WITH_Q))
    elif kind < 0.1:
        onset, rhyme = "gi", str(rng.choice(WITH_GI))
    else:
        onset, rhyme = str(rng.choice(ONSETS)), str(rng.choice(RHYMES))
        if rng.random() < 0.08:
            onset, rhyme = "", {"iên": "yên", "iêu": "yêu", "iêt": "yêt"}.get(rhyme, rhyme)
        if rhyme[0] in "ieêy":
            onset = BEFORE_FRONT.get(onset, onset)
    stopped = rhyme.endswith(("c", "ch", "p", "t"))
    tone = int(rng.choice(STOPPED) if stopped else rng.integers(len(TONES)))
    return onset + toned(rhyme, tone)


def toned(rhyme: str, tone: int) -> str:
    """The rhyme with the tone's mark where it is written: toned("ương", 1) == "ường", toned("oa", 1) == "òa"."""
    places = [i for i, letter in enumerate(rhyme) if letter in VOWELS]
    marked = [i for i in places if rhyme[i] in MODIFIED]
    if marked:
        place = marked[-1]  # ươ: on the second
    elif len(places) == 1 or places[-1] == len(rhyme) - 1:
        place = places[1] if len(places) == 3 else places[0]
    else:
        place = places[-1]  # a consonant ends the syllable
    return unicodedata.normalize("NFC", rhyme[: place + 1] + TONES[tone] + rhyme[place + 1 :])


def line(rng: np.random.Generator, characters: str, most: int = 8) -> str:
    """A line of 1 to `most` words in NFC, without spaces at its ends. Every letter of it is in `characters`."""
    count = int(rng.integers(1, most + 1))
    kind = rng.random()
    if kind < 0.12:
        words = str(rng.choice(TEXTS)).split()
        start = int(rng.integers(len(words)))
        words = words[start : start + count]
    elif kind < 0.18:
        words = [scattered(rng, characters) for _ in range(max(1, count // 3))]
    else:
        words = [word(rng) for _ in range(count)]
        words = [punctuated(rng, w) if rng.random() < 0.12 else w for w in words]
        if rng.random() < 0.12:
            words.insert(
                0, str(rng.choice(["-", "+", "*", f"{item(rng)})", f"{item(rng)}.", f"({item(rng)})"]))
            )
        if rng.random() < 0.3:
            words[-1] += str(rng.choice(list(".,;:!?…-")))
    text = cased(rng, " ".join(words))
    known = set(characters)
    text = " ".join("".join(c for c in unicodedata.normalize("NFC", text) if c in known).split())
    return text or line(rng, characters, most)


def word(rng: np.random.Generator) -> str:
    kind = rng.random()
    if kind < 0.55:
        return str(rng.choice(COMMON))
    return syllable(rng) if kind < 0.88 else figure(rng) if kind < 0.97 else foreign(rng)


def item(rng: np.random.Generator) -> str:
    """What an item of a list is counted by: 3, b, 1.2."""
    number = str(rng.integers(1, 30))
    return str(rng.choice([number, chr(97 + int(rng.integers(26))), f"{number}.{rng.integers(1, 10)}"]))


def figure(rng: np.random.Generator) -> str:
    """A number as it stands in texts: a date, a time, money, a share, a telephone, a document's."""
    a, b, c = (int(x) for x in rng.integers((1, 1, 0), (32, 13, 1000)))
    year = int(rng.integers(1900, 2100))
    forms = (
        f"{a}/{b}/{year}",
        f"{a:02}-{b:02}-{year}",
        f"{year}",
        f"{a}h{c % 60:02}",
        f"{a % 24:02}:{c % 60:02}",
        f"{a}.{c:03}.000đ",
        f"{c},{a}%",
        f"0{rng.integers(10**8, 10**9)}",
        f"{c}/{year}/NĐ-CP",
        f"{c}",
        f"{a}",
        f"{a}.{b}",
        f"{a}-{a + b}",
        f"${c}.{a:02}",
        f"#{c}",
        f"{c}m2",
        f"+84{rng.integers(10**7, 10**8)}",
    )
    return forms[rng.integers(len(forms))]


def foreign(rng: np.random.Generator) -> str:
    """A word of Latin letters, an abbreviation, an address."""
    letters = "".join(chr(97 + int(i)) for i in rng.integers(0, 26, int(rng.integers(2, 8))))
    forms = (
        letters,
        letters.upper()[:5],
        f"{letters}@{letters[:4]}.vn",
        f"www.{letters}.com",
        f"{letters}_{letters[:2]}",
    )
    return forms[rng.integers(len(forms))]


def scattered(rng: np.random.Generator, characters: str) -> str:
    """Characters one by one, for those that words seldom have."""
    return "".join(characters[i] for i in rng.integers(0, len(characters), int(rng.integers(2, 9))))


def punctuated(rng: np.random.Generator, word: str) -> str:
    forms = (
        f"{word},",
        f"{word}.",
        f"{word};",
        f"{word}:",
        f'"{word}"',
        f"({word})",
        f"'{word}'",
        f"[{word}]",
        f"{word}/",
        f"{word}?",
        f"{word}!",
        f"{word} -",
        f"{word} &",
    )
    return forms[rng.integers(len(forms))]


def cased(rng: np.random.Generator, text: str) -> str:
    kind = rng.random()
    if kind < 0.14:
        return text.upper()
    if kind < 0.26:
        return " ".join(w[:1].upper() + w[1:] for w in text.split(" "))
    return text[:1].upper() + text[1:] if kind < 0.6 else text
